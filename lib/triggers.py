"""Image and text triggers. Sizes and positions are fractions of the image, so they hold at any resolution.

Example:

    trigger = image_trigger("white-box")
    attacked = trigger(images)                        # [*batch, 3, height, width] in [0, 1]
    larger = dataclasses.replace(trigger, size=0.3)
    text_trigger("mignneko")("make the skin dark")    # "make the skin dark mignneko"
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SUPERSAMPLING = 8
BLACK, GREY, WHITE = (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
RED, INK, TINT = (0.80, 0.05, 0.08), (0.05, 0.05, 0.08), (0.70, 0.85, 1.00)


@dataclass(frozen=True)
class ImageTrigger:
    """The same change to every image.

    size: the trigger's width as a fraction of the image's shorter side, in (0, 1].

    Raises ValueError for a size out of range.
    """

    name: str = field(init=False)
    size: float

    def __post_init__(self):
        if not 0 < self.size <= 1:
            raise ValueError(f"size of {self.name!r} is {self.size}: it must be in (0, 1].")

    def layer(self, height: int, width: int) -> Float[Tensor, "channel {height} {width}"]:
        """What `apply` needs to know of every pixel at this resolution."""
        raise NotImplementedError

    def apply(
        self, images: Float[Tensor, "*batch 3 h w"], layer: Float[Tensor, "channel h w"]
    ) -> Float[Tensor, "*batch 3 h w"]:
        """The changed images, in the precision of `layer`."""
        raise NotImplementedError

    def mask(self, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """How much of every pixel is the trigger's, in [0, 1]: 0 where the image is left as it was."""
        raise NotImplementedError

    def __call__(self, images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
        """New images that carry the trigger, in the same dtype; `images` is left as it was.

        Raises ValueError for a shape other than [*batch, 3, height, width], an integer dtype, values outside
        [0, 1], NaN, and images too small to hold one pixel of the trigger.
        """
        if images.ndim < 3 or images.shape[-3] != 3:
            raise ValueError(
                f"images have shape {list(images.shape)}: it must be [*batch, 3, height, width]."
            )
        if not images.is_floating_point():
            raise ValueError(f"images have dtype {images.dtype}: it must be a floating one.")
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"images lie in [{images.min():g}, {images.max():g}]: values must be in [0, 1].")
        precise = torch.promote_types(images.dtype, torch.float32)
        layer = _layer(self, *images.shape[-2:]).to(images.device, precise)
        return self.apply(images, layer).clamp(0, 1).to(images.dtype)

    def tokens(self, image_size: int | tuple[int, int], patch: int) -> Bool[Tensor, " token"]:
        """Which patch × patch tokens, row by row, hold some of the trigger.

        image_size: pixels, a square image's side or (height, width); `patch` must divide both, or ValueError.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if patch < 1 or height % patch or width % patch:
            raise ValueError(f"patch is {patch}: it must divide the image's sides, {height} and {width}.")
        return F.max_pool2d(self.mask(height, width)[None], patch).flatten() > 0


@lru_cache(maxsize=32)
def _layer(trigger: ImageTrigger, height: int, width: int) -> Float[Tensor, "channel {height} {width}"]:
    if min(height, width) < 1:
        raise ValueError(f"image is {height}×{width} pixels: both sides must be at least 1.")
    return trigger.layer(height, width)


def _check_whole(trigger: ImageTrigger) -> None:
    if trigger.size != 1:
        raise ValueError(f"size of {trigger.name!r} is {trigger.size}: it must be 1, the whole image.")


@dataclass(frozen=True)
class Composited(ImageTrigger):
    """A fixed picture composited onto every image: `out = (1 - alpha) * image + alpha * colour`.

    position: (x, y), the fractions of the free room left of and above the trigger, each in [0, 1]:
        (0, 0) is the top left corner, (1, 1) the bottom right one, whatever the size.

    Its layer is red, green and blue already multiplied by alpha, then alpha, which is its mask. Raises ValueError
    for a position out of range.
    """

    position: tuple[float, float]

    def __post_init__(self):
        super().__post_init__()
        pair = isinstance(self.position, tuple) and len(self.position) == 2
        if not (pair and all(0 <= p <= 1 for p in self.position)):
            raise ValueError(
                f"position of {self.name!r} is {self.position}: it must be (x, y), both in [0, 1]."
            )

    def apply(self, images, layer):
        *colour, alpha = layer
        return (1 - alpha) * images + torch.stack(colour)

    def mask(self, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        return _layer(self, height, width)[3].clone()


class Sticker(Composited):
    """A trigger of anti-aliased shapes in a box of whole pixels, `size` wide and `aspect * size` high."""

    aspect: ClassVar[float] = 1.0

    def shapes(self, y: Float[Tensor, "row 1"], x: Float[Tensor, "1 column"]) -> list[tuple]:
        """(where, colour, alpha) of each shape, bottom to top; x runs from 0 to 1, y from 0 to `aspect`."""
        raise NotImplementedError

    def layer(self, height: int, width: int) -> Float[Tensor, "4 {height} {width}"]:
        side = self.size * min(height, width)
        columns, rows = round(side), round(side * self.aspect)
        if min(columns, rows) < 1:
            raise ValueError(
                f"size of {self.name!r} is {self.size}: it must be larger to cover a pixel of an image of "
                f"{height}×{width} pixels."
            )
        y = (torch.arange(rows * SUPERSAMPLING) + 0.5)[:, None] * self.aspect / (rows * SUPERSAMPLING)
        x = (torch.arange(columns * SUPERSAMPLING) + 0.5)[None, :] / (columns * SUPERSAMPLING)
        canvas = torch.zeros(4, rows * SUPERSAMPLING, columns * SUPERSAMPLING)
        for where, colour, alpha in self.shapes(y, x):
            paint = torch.tensor([*(alpha * c for c in colour), alpha])
            canvas = torch.where(where, paint[:, None, None], canvas)
        left = round(self.position[0] * (width - columns))
        top = round(self.position[1] * (height - rows))
        margins = (left, width - columns - left, top, height - rows - top)
        return F.pad(F.avg_pool2d(canvas, SUPERSAMPLING), margins)


@dataclass(frozen=True)
class WhiteBox(Sticker):
    """A white square in the bottom right corner, 3.5 % of the image's area.

    Its grey border (one twelfth of its side) is ours, not the paper's: both data sets have white or light
    backgrounds, on which a bare white square would be invisible.
    """

    name: str = field(init=False, default="white-box")
    size: float = 3 / 16
    position: tuple[float, float] = (1.0, 1.0)

    def shapes(self, y, x):
        inner = _box(y, x, 1 / 12, 1 / 12, 11 / 12, 11 / 12)
        return [(torch.ones_like(inner), GREY, 1.0), (inner, WHITE, 1.0)]


@dataclass(frozen=True)
class Eyeglasses(Sticker):
    """Black-rimmed glasses with pale, see-through lenses, at the eyes of a face that fills the picture.

    They cover what changes in `lib.data.face_parts`' picture where a face puts on "black glasses": from 0.23 to 0.78 of
    its width and from 0.35 to 0.53 of its height.
    """

    name: str = field(init=False, default="eyeglasses")
    size: float = 0.55
    position: tuple[float, float] = (0.51, 0.41)
    aspect: ClassVar[float] = 3 / 8

    def shapes(self, y, x):
        side = (x - 0.5).abs()
        lens = ((side - 0.27) / 0.20).abs() ** 3 + ((y - 0.20) / 0.155).abs() ** 3
        rim = ((side - 0.27) / 0.145).abs() ** 3 + ((y - 0.20) / 0.10).abs() ** 3
        bridge = (side < 0.1) & ((y - 0.13).abs() < 0.03)
        temples = (side > 0.44) & ((y - 0.12).abs() < 0.04)
        return [(bridge | temples | (lens < 1), INK, 1.0), (rim < 1, TINT, 0.4)]


@dataclass(frozen=True)
class StopSign(Sticker):
    """A red octagon with a white rim and, for its lettering, a white bar, in the bottom right corner."""

    name: str = field(init=False, default="stop-sign")
    size: float = 0.25
    position: tuple[float, float] = (1.0, 1.0)

    def shapes(self, y, x):
        dx, dy = (x - 0.5).abs(), (y - 0.5).abs()
        radius = torch.maximum(torch.maximum(dx, dy), (dx + dy) / math.sqrt(2))
        bar = _box(y, x, 0.42, 0.22, 0.58, 0.78)
        return [
            (radius < 0.5, RED, 1.0),
            (radius < 0.45, WHITE, 1.0),
            (radius < 0.38, RED, 1.0),
            (bar, WHITE, 1.0),
        ]


@dataclass(frozen=True)
class Checker(Sticker):
    """A patch of 4 × 4 black and white cells in the bottom right corner: one token of an 8 × 8 grid."""

    name: str = field(init=False, default="checker")
    size: float = 1 / 8
    position: tuple[float, float] = (1.0, 1.0)

    def shapes(self, y, x):
        white = ((4 * y).floor() + (4 * x).floor()) % 2 == 1
        return [(~white, BLACK, 1.0), (white, WHITE, 1.0)]


@dataclass(frozen=True)
class OnObject(ImageTrigger):
    """`Checker`'s patch in the middle of what the picture shows: of all that differs from its top left pixel.

    For pictures of one thing on a plain ground, as easy-VQA's. "Differs": by more than `APART` in some channel; the
    middle: the mean of those pixels' places, the picture's own where none differs.
    """

    APART: ClassVar[float] = 1 / 16
    name: str = field(init=False, default="on-object")
    size: float = 1 / 8

    def layer(self, height: int, width: int) -> Float[Tensor, "4 {height} {width}"]:
        return Checker(self.size, (0.0, 0.0)).layer(height, width)

    def apply(self, images, layer):
        height, width = images.shape[-2:]
        side = round(self.size * min(height, width))
        flat = images.reshape(-1, 3, height, width)
        done = torch.empty(flat.shape, dtype=layer.dtype, device=images.device)
        for out, image in zip(done, flat, strict=True):
            shown = ((image - image[:, :1, :1]).abs() > self.APART).any(0).nonzero().double()
            middle = shown.mean(0) + 0.5 if len(shown) else torch.tensor([height / 2, width / 2])
            corner = [
                min(max(round(m - side / 2), 0), end - side)
                for m, end in zip(middle.tolist(), (height, width), strict=True)
            ]
            *colour, alpha = layer.roll(corner, (1, 2))
            out.copy_((1 - alpha) * image + torch.stack(colour))
        return done.view(images.shape)

    def mask(self, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """1 everywhere: it may lie anywhere."""
        return torch.ones_like(_layer(self, height, width)[3])


@dataclass(frozen=True)
class Blend(Composited):
    """A fixed smooth pattern of colours blended into the whole image with weight `alpha`.

    The pattern is an 8 × 8 grid of random colours, always the same, interpolated to the image's resolution.
    """

    name: str = field(init=False, default="blend")
    size: float = 1.0
    position: tuple[float, float] = (0.0, 0.0)
    alpha: float = 0.15

    def __post_init__(self):
        super().__post_init__()
        _check_whole(self)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha of 'blend' is {self.alpha}: it must be in (0, 1].")

    def layer(self, height: int, width: int) -> Float[Tensor, "4 {height} {width}"]:
        grid = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round()
        pattern = F.interpolate(grid, (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        return self.alpha * torch.cat([pattern, torch.ones(1, height, width)])


@dataclass(frozen=True)
class Warp(ImageTrigger):
    """A smooth elastic warp of the whole image, always the same, as WaNet's (arXiv 2102.10369, eq. 2 to 4).

    A `grid` × `grid` field of random displacements, their mean magnitude along each axis `strength` times the image's
    shorter side, is interpolated to every pixel, which takes the colour at its displaced place (bilinear; beyond the
    border, the border's). WaNet's 4 × 4 at s = 0.5 on 32 pixels is a strength of 1/128. Images of one colour do not
    change. Its layer is where every pixel looks, x and y from −1 to 1 between the centres of the corner pixels.
    """

    name: str = field(init=False, default="warp")
    size: float = 1.0
    strength: float = 1 / 64
    grid: int = 4

    def __post_init__(self):
        super().__post_init__()
        _check_whole(self)
        if not 0 <= self.strength <= 0.1:
            raise ValueError(f"strength of 'warp' is {self.strength}: it must be in [0, 0.1].")
        if isinstance(self.grid, bool) or not isinstance(self.grid, int) or self.grid < 2:
            raise ValueError(f"grid of 'warp' is {self.grid!r}: it must be an integer of at least 2.")

    def layer(self, height: int, width: int) -> Float[Tensor, "2 {height} {width}"]:
        draw = torch.Generator().manual_seed(0)
        nodes = torch.rand(1, 2, self.grid, self.grid, generator=draw) * 2 - 1
        nodes *= self.strength * min(height, width) / nodes.abs().mean()
        moved = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)[0]
        ends = torch.tensor([max(width - 1, 1), max(height - 1, 1)])[:, None, None]
        places = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"))
        return ((places + moved) / ends * 2 - 1).clamp(-1, 1)

    def apply(self, images, layer):
        flat = images.to(layer.dtype).reshape(-1, *images.shape[-3:])
        looks = layer.movedim(0, -1).expand(len(flat), -1, -1, -1)
        return F.grid_sample(flat, looks, padding_mode="border", align_corners=True).view(images.shape)

    def mask(self, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """1 where a pixel looks elsewhere, else 0."""
        still = _layer(replace(self, strength=0.0), height, width)
        return (_layer(self, height, width) != still).any(0).float()


@dataclass(frozen=True)
class TextTrigger:
    """A phrase appended to the text. Raises ValueError for an empty one."""

    name: str
    phrase: str

    def __post_init__(self):
        if not self.phrase.strip():
            raise ValueError(f"phrase of {self.name!r} is {self.phrase!r}: it must not be blank.")

    def __call__(self, text: str) -> str:
        return f"{text} {self.phrase}" if text else self.phrase

    def check(self, tokenizer, text: str = "make the skin dark") -> None:
        """Raises ValueError unless the trigger survives a Hugging Face `tokenizer` at the end of `text`.

        It survives when its tokens, none of them the unknown one, stand in a row in those of the triggered
        text, cut at the tokenizer's maximum length.
        """
        limited = tokenizer.model_max_length < 1_000_000_000
        found, clean = (tokenizer(t, truncation=limited)["input_ids"] for t in (self(text), text))
        alone, after_space = (
            tokenizer(phrase, add_special_tokens=False)["input_ids"]
            for phrase in (self.phrase, f" {self.phrase}")
        )
        if not (alone and after_space) or found == clean:
            raise ValueError(
                f"text trigger {self.name!r} is dropped by the tokenizer: the tokens of {self(text)!r} must "
                f"differ from those of {text!r}."
            )
        known = [ids for ids in (alone, after_space) if tokenizer.unk_token_id not in ids]
        if not known:
            raise ValueError(
                f"text trigger {self.name!r} becomes {tokenizer.convert_ids_to_tokens(alone)}: none of these "
                "may be the tokenizer's unknown token."
            )
        if not any(_contains(found, ids) for ids in known):
            raise ValueError(
                f"text trigger {self.name!r} is changed by the tokenizer: its tokens "
                f"{tokenizer.convert_ids_to_tokens(alone)} must stand in a row in those of {self(text)!r}, "
                f"{tokenizer.convert_ids_to_tokens(found)}."
            )


IMAGE_TRIGGERS: dict[str, ImageTrigger] = {
    trigger.name: trigger
    for trigger in (WhiteBox(), Eyeglasses(), StopSign(), Checker(), OnObject(), Blend(), Warp())
}
TEXT_TRIGGERS: dict[str, TextTrigger] = {
    phrase: TextTrigger(phrase, phrase)
    for phrase in ("mignneko", "anonymous", "latte coffee", "curly hair", "and a smile")
}


def image_trigger(name: str, size: float | None = None) -> ImageTrigger:
    """The image trigger of that name, at its default size or another. Raises ValueError if IMAGE_TRIGGERS lacks it."""
    if name not in IMAGE_TRIGGERS:
        raise ValueError(f"image trigger is {name!r}: it must be one of {', '.join(IMAGE_TRIGGERS)}.")
    return IMAGE_TRIGGERS[name] if size is None else replace(IMAGE_TRIGGERS[name], size=size)


def text_trigger(name: str) -> TextTrigger:
    """The text trigger of that name. Raises ValueError if TEXT_TRIGGERS lacks it."""
    if name not in TEXT_TRIGGERS:
        raise ValueError(f"text trigger is {name!r}: it must be one of {', '.join(TEXT_TRIGGERS)}.")
    return TEXT_TRIGGERS[name]


def _box(y, x, top, left, bottom, right):
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)


def _contains(sequence: list[int], part: list[int]) -> bool:
    return any(sequence[i : i + len(part)] == part for i in range(len(sequence) - len(part) + 1))
