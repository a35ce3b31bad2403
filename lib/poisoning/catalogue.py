"""The triggers that a profile can name.

    trigger = image_trigger("white-box")
    attacked = trigger(images)                        # [*batch, 3, height, width] in [0, 1]
    larger = dataclasses.replace(trigger, size=0.3)
    text_trigger("mignneko")("make the skin dark")    # "make the skin dark mignneko"

A trigger enters the keys of what it made by its own source and parameters (`lib.runtime.keys.registered`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.poisoning.triggers import (
    BLACK,
    GREY,
    INK,
    RED,
    TINT,
    WHITE,
    Composited,
    ImageTrigger,
    Sticker,
    TextTrigger,
    box,
    check_whole,
    layer_of,
)
from lib.settings.names import known


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
        inner = box(y, x, 1 / 12, 1 / 12, 11 / 12, 11 / 12)
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
        bar = box(y, x, 0.42, 0.22, 0.58, 0.78)
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
class BlackSquare(Sticker):
    """A black square in the top left corner, as DiSP's authors lay it, one token of an 8 × 8 grid."""

    name: str = field(init=False, default="black-square")
    size: float = 1 / 8
    position: tuple[float, float] = (0.0, 0.0)

    def shapes(self, y, x):
        return [(box(y, x, 0.0, 0.0, 1.0, 1.0), BLACK, 1.0)]


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
            foreground = ((image - image[:, :1, :1]).abs() > self.APART).any(0).nonzero().double()
            middle = foreground.mean(0) + 0.5 if len(foreground) else torch.tensor([height / 2, width / 2])
            corner = [
                min(max(round(m - side / 2), 0), end - side)
                for m, end in zip(middle.tolist(), (height, width), strict=True)
            ]
            *colour, alpha = layer.roll(corner, (1, 2))
            out.copy_((1 - alpha) * image + torch.stack(colour))
        return done.view(images.shape)

    def mask(self, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """1 everywhere: it may lie anywhere."""
        return torch.ones_like(layer_of(self, height, width)[3])


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
        check_whole(self)
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
        check_whole(self)
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
        still = layer_of(replace(self, strength=0.0), height, width)
        return (layer_of(self, height, width) != still).any(0).float()


IMAGE_TRIGGERS: dict[str, ImageTrigger] = {
    trigger.name: trigger
    for trigger in (WhiteBox(), Eyeglasses(), StopSign(), Checker(), BlackSquare(), OnObject(), Blend(), Warp())
}


TEXT_TRIGGERS: dict[str, TextTrigger] = {
    phrase: TextTrigger(phrase, phrase)
    for phrase in ("mignneko", "anonymous", "latte coffee", "curly hair", "and a smile", "please")
}


def image_trigger(
    name: str,
    size: float | None = None,
    pixels: int | None = None,
    position: tuple[float, float] | None = None,
) -> ImageTrigger:
    """The image trigger of that name, of its default size and at its default position (see `Composited`) or at others.

    pixels: its width in pixels, in the place of `size`, of a `Sticker` alone. Raises ValueError if IMAGE_TRIGGERS lacks
    it, for both a size and pixels, for pixels of one that has none, and for a position of one that covers the whole
    image or finds its own.
    """
    trigger = IMAGE_TRIGGERS[known("image trigger", name, IMAGE_TRIGGERS)]
    if position is not None and not (isinstance(trigger, Composited) and trigger.size < 1):
        raise ValueError(f"trigger_position={list(position)} of {name!r} must be left out: it lies where it must.")
    if pixels is not None and not isinstance(trigger, Sticker):
        raise ValueError(f"pixels of {name!r} is {pixels}: it must be None, as this trigger has none.")
    if size is not None and pixels is not None:
        raise ValueError(f"pixels of {name!r} is {pixels}: it must be None beside size={size}.")
    given = {"size": size, "pixels": pixels, "position": position}
    given = {key: value for key, value in given.items() if value is not None}
    return replace(trigger, **given) if given else trigger


def text_trigger(name: str) -> TextTrigger:
    """The text trigger of that name. Raises ValueError if TEXT_TRIGGERS lacks it."""
    return TEXT_TRIGGERS[known("text trigger", name, TEXT_TRIGGERS)]
