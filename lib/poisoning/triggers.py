"""What a trigger is. Sizes and positions are fractions of the image, so they hold at any resolution.

The image is the picture as it lies on disk: see `lib.data.interface`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SUPERSAMPLING = 8
UNLIMITED = 1_000_000_000  # from here on a tokenizer's `model_max_length` means that it never cuts
SHOWN = 60  # letters of a text in a refusal
KEPT = 2**20  # pixels: layers of larger images are not kept

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
        layer = layer_of(self, *images.shape[-2:]).to(images.device, precise)
        return self.apply(images, layer).clamp(0, 1).to(images.dtype)

    def tokens(self, image_size: int | tuple[int, int], patch: int) -> Bool[Tensor, " token"]:
        """Which patch × patch tokens, row by row, hold some of the trigger.

        image_size: pixels, a square image's side or (height, width); `patch` must divide both, or ValueError.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if patch < 1 or height % patch or width % patch:
            raise ValueError(f"patch is {patch}: it must divide the image's sides, {height} and {width}.")
        return F.max_pool2d(self.mask(height, width)[None], patch).flatten() > 0


def layer_of(trigger: ImageTrigger, height: int, width: int) -> Float[Tensor, "channel {height} {width}"]:
    if min(height, width) < 1:
        raise ValueError(f"image is {height}×{width} pixels: both sides must be at least 1.")
    return _kept_layer(trigger, height, width) if height * width <= KEPT else trigger.layer(height, width)


@lru_cache(maxsize=32)
def _kept_layer(trigger: ImageTrigger, height: int, width: int) -> Float[Tensor, "channel {height} {width}"]:
    return trigger.layer(height, width)


def check_whole(trigger: ImageTrigger) -> None:
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
        return layer_of(self, height, width)[3].clone()


@dataclass(frozen=True)
class Sticker(Composited):
    """A trigger of anti-aliased shapes in a box of whole pixels, `size` wide and `aspect * size` high.

    pixels: the width in pixels instead, whatever the image's size. Raises ValueError for less than one.
    """

    aspect: ClassVar[float] = 1.0
    pixels: int | None = field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.pixels is not None and (type(self.pixels) is not int or self.pixels < 1):
            raise ValueError(f"pixels of {self.name!r} is {self.pixels!r}: it must be None or an integer above 0.")

    def shapes(self, y: Float[Tensor, "row 1"], x: Float[Tensor, "1 column"]) -> list[tuple]:
        """(where, colour, alpha) of each shape, bottom to top; x runs from 0 to 1, y from 0 to `aspect`.

        where is a bool tensor; colour red, green and blue, and alpha, are in [0, 1].
        """
        raise NotImplementedError

    def layer(self, height: int, width: int) -> Float[Tensor, "4 {height} {width}"]:
        side = self.size * min(height, width) if self.pixels is None else self.pixels
        columns, rows = round(side), round(side * self.aspect)
        if columns > width or rows > height:
            raise ValueError(
                f"{self.name!r} is {rows}×{columns} pixels: it must be smaller to lie on an image of {height}×{width}."
            )
        if min(columns, rows) < 1:
            raise ValueError(
                f"size of {self.name!r} is {self.size}: it must be larger to cover a pixel of an image of "
                f"{height}×{width} pixels."
            )
        y = (torch.arange(rows * SUPERSAMPLING) + 0.5)[:, None] * self.aspect / (rows * SUPERSAMPLING)
        x = (torch.arange(columns * SUPERSAMPLING) + 0.5)[None, :] / (columns * SUPERSAMPLING)
        canvas = torch.zeros(4, rows * SUPERSAMPLING, columns * SUPERSAMPLING)
        for where, colour, alpha in map(self._checked, self.shapes(y, x)):
            paint = torch.tensor([*(alpha * c for c in colour), alpha])
            canvas = torch.where(where, paint[:, None, None], canvas)
        left = round(self.position[0] * (width - columns))
        top = round(self.position[1] * (height - rows))
        margins = (left, width - columns - left, top, height - rows - top)
        return F.pad(F.avg_pool2d(canvas, SUPERSAMPLING), margins)

    def _checked(self, shape: object) -> tuple:
        wanted = "(where, colour, alpha): a bool tensor, three numbers and a number in [0, 1]"
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise ValueError(f"shapes of {self.name!r} gives a {type(shape).__name__}: it must be a list of {wanted}.")
        where, colour, alpha = shape
        numbers = (*colour, alpha) if isinstance(colour, (tuple, list)) and len(colour) == 3 else ()
        inside = numbers and all(isinstance(c, Real) and 0 <= c <= 1 for c in numbers)
        if not (inside and isinstance(where, torch.Tensor) and where.dtype == torch.bool):
            kind = getattr(where, "dtype", type(where).__name__)
            raise ValueError(f"shapes of {self.name!r} gives ({kind}, {colour!r}, {alpha!r}): it must be {wanted}.")
        return shape


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

    def check(
        self, tokenizer, texts: Sequence[str] = ("make the skin dark",), length: int | None = None
    ) -> None:
        """Raises ValueError unless the trigger survives a Hugging Face `tokenizer` at the end of all `texts`.

        It survives when its tokens, none of them the unknown one, are the last of the triggered text, whose tokens
        differ from the text's own. Both are cut at `length` tokens, special ones not added; None: at the tokenizer's
        maximum, its special ones included.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return
        possible = self._possible(tokenizer)
        triggered, plain = (
            _cut(tokenizer, said, length) for said in ([self(text) for text in distinct], distinct)
        )
        lost = {
            text
            for text, row, clean in zip(distinct, triggered, plain, strict=True)
            if row == clean or not any(row[-len(ids) :] == ids for ids in possible)
        }
        if not lost:
            return
        example = next(text for text in texts if text in lost)
        limit = tokenizer.model_max_length if length is None else length
        counted = f"{sum(text in lost for text in texts)} of {len(texts)} texts"
        whole = tokenizer(self(example), add_special_tokens=length is None)["input_ids"]
        shown = example if len(example) <= SHOWN else f"{example[:SHOWN]}…"
        if len(whole) > limit:
            raise ValueError(
                f"text trigger {self.name!r} is cut off in {counted}, as after {shown!r}, which makes {len(whole)} "
                f"tokens with it: the tokenizer keeps {limit} at most."
            )
        raise ValueError(
            f"text trigger {self.name!r} is dropped or changed by the tokenizer in {counted}, as after {shown!r}: the "
            f"last tokens must be those of the trigger, {tokenizer.convert_ids_to_tokens(possible[0])}, not "
            f"{tokenizer.convert_ids_to_tokens(whole)}."
        )

    def _possible(self, tokenizer) -> list[list[int]]:
        """The trigger's own tokens, first in a text and after a space. Raises ValueError for none or unknown ones."""
        rows = [
            tokenizer(phrase, add_special_tokens=False)["input_ids"] for phrase in (self.phrase, f" {self.phrase}")
        ]
        if not all(rows):
            raise ValueError(
                f"text trigger {self.name!r} is dropped by the tokenizer: {self.phrase!r} must have tokens of its own."
            )
        possible = [ids for ids in rows if tokenizer.unk_token_id not in ids]
        if not possible:
            raise ValueError(
                f"text trigger {self.name!r} becomes {tokenizer.convert_ids_to_tokens(rows[0])}: none of these may be "
                "the tokenizer's unknown token."
            )
        return possible


def _cut(tokenizer, texts: list[str], length: int | None) -> list[list[int]]:
    """The tokens of texts, cut as `TextTrigger.check` says, without the special ones at their end."""
    if length is not None:
        return [row[:length] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    limited = tokenizer.model_max_length < UNLIMITED
    rows = tokenizer(texts, truncation=limited, return_special_tokens_mask=True)
    ends = [len(mask) - mask[::-1].index(0) if 0 in mask else 0 for mask in rows["special_tokens_mask"]]
    return [row[:end] for row, end in zip(rows["input_ids"], ends, strict=True)]


def box(y, x, top, left, bottom, right):
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)
