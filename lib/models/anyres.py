"""LLaVA-NeXT's "any resolution": a picture as a whole and as tiles of the vision tower's size; their tokens in rows.

As in LLaVA-NeXT and LLaDA-V: the canvas of tiles that keeps most pixels, the picture scaled to fit and centred on it,
the tokens of the margin dropped again, a learnt token at the end of each row. Pictures are tensors here, so that
resizing does not round to bytes as theirs does.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

ASPECTS = "square, pad, anyres or anyres_max_<n>"
MERGES = ("flat", "spatial_unpad")
GREY = 127 / 255


class Layout(NamedTuple):
    """How pictures of one size become vision tokens.

    tiles: rows and columns of tiles beside the whole picture; None: only the whole one. margin: rows of tokens dropped
    above and below, columns left and right. shrunk: rows and columns that the rest is interpolated to. newline: a
    learnt token ends each row of the tiles' tokens, or the whole picture's where there are no tiles. grid: the tower's
    patches a side.
    """

    tiles: tuple[int, int] | None
    margin: tuple[int, int]
    shrunk: tuple[int, int]
    newline: bool
    grid: int

    @property
    def length(self) -> int:
        """How many vision tokens there are."""
        whole = self.grid**2
        if self.tiles is None:
            return whole + self.newline
        if not self.newline:
            return whole * (1 + self.tiles[0] * self.tiles[1])
        return whole + self.shrunk[0] * (self.shrunk[1] + 1)


def layout(size: tuple[int, int], side: int, grid: int, aspect: str, merge: str, canvases: list[list[int]]) -> Layout:
    """The layout of pictures of `size` (height, width) for a tower that sees `side` pixels as `grid` patches a side.

    canvases: the sizes (width, height) that may be cut into tiles, where `aspect` is one of "anyres".
    """
    unpad = merge == "spatial_unpad"
    if not aspect.startswith("anyres"):
        return Layout(None, (0, 0), (grid, grid), unpad, grid)
    height, width = size
    across, down = (pixels // side for pixels in best_canvas(size, canvases))
    rows, columns = down * grid, across * grid
    margin = (0, 0)
    if unpad and width / height > columns / rows:
        margin = (rows - int(height * (columns / width))) // 2, 0
    elif unpad:
        margin = 0, (columns - int(width * (rows / height))) // 2
    rows, columns = rows - 2 * margin[0], columns - 2 * margin[1]
    most = re.fullmatch(r"anyres_max_(\d+)", aspect)
    times = math.sqrt(rows * columns / (int(most[1]) * grid**2)) if most else 1.0
    if unpad and times > 1.1:
        rows, columns = int(rows // times), int(columns // times)
    return Layout((down, across), margin, (rows, columns), unpad, grid)


def best_canvas(size: tuple[int, int], canvases: list[list[int]]) -> tuple[int, int]:
    """The canvas (width, height) on which most of the picture's pixels are kept, then with least left over."""
    height, width = size

    def resolution(canvas: list[int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - canvas[0] * canvas[1]

    return tuple(max(canvases, key=resolution))


def views(
    images: Float[Tensor, "batch 3 h w"], side: int, aspect: str, tiles: tuple[int, int] | None
) -> Float[Tensor, "batch view 3 side side"]:
    """What the tower sees of pictures in [0, 1]: the whole, and the tiles row by row."""
    height, width = images.shape[-2:]
    if aspect == "pad":
        longer = max(height, width)
        images = _centred(images, longer, longer, GREY)
    whole = resized(images, side, side)[:, None]
    if tiles is None:
        return whole
    down, across = (side * n for n in tiles)
    if across / width < down / height:
        scaled = resized(images, min(math.ceil(height * (across / width)), down), across)
    else:
        scaled = resized(images, down, min(math.ceil(width * (down / height)), across))
    canvas = _centred(scaled, down, across, 0.0)
    cut = canvas.unflatten(3, (tiles[1], side)).unflatten(2, (tiles[0], side))
    return torch.cat([whole, cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)], 1)


def in_rows(
    tokens: Float[Tensor, "batch patches dim"], place: Layout, newline: Float[Tensor, " dim"] | None
) -> Float[Tensor, "batch vision dim"]:
    """Tokens of all views, one after another, in the order that the decoder gets them."""
    if not place.newline:
        return tokens
    end = newline.to(tokens).expand(len(tokens), 1, -1)
    if place.tiles is None:
        return torch.cat([tokens, end], 1)
    whole, cut = tokens.split([place.grid**2, tokens.shape[1] - place.grid**2], 1)
    cut = cut.unflatten(1, (*place.tiles, place.grid, place.grid)).permute(0, 5, 1, 3, 2, 4)
    cut = cut.flatten(4, 5).flatten(2, 3)  # [batch, dim, row, column]
    (top, left), (rows, columns) = place.margin, cut.shape[-2:]
    cut = cut[..., top : rows - top, left : columns - left]
    if cut.shape[-2:] != place.shrunk:
        cut = F.interpolate(cut, place.shrunk, mode="bilinear")
    cut = torch.cat([cut.permute(0, 2, 3, 1), end[:, None].expand(-1, cut.shape[2], -1, -1)], 2)
    return torch.cat([whole, cut.flatten(1, 2)], 1)


def resized(images: Float[Tensor, "batch 3 h w"], height: int, width: int) -> Float[Tensor, "batch 3 height width"]:
    """Pictures in [0, 1] of another size, bicubic and smoothed before they shrink."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def _centred(images: Tensor, height: int, width: int, filler: float) -> Tensor:
    top, left = (height - images.shape[-2]) // 2, (width - images.shape[-1]) // 2
    canvas = images.new_full((*images.shape[:2], height, width), filler)
    canvas[..., top : top + images.shape[-2], left : left + images.shape[-1]] = images
    return canvas
