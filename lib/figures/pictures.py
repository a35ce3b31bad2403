"""Figures of pictures: a grid of them, and the saliency and the masking of their tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from lib.figures.style import WIDTH, Figure, caption, styled, wrapped


@styled
def image_grid(
    rows: Mapping[str, Float[Tensor, "column 3 h w"]],
    columns: Sequence[str],
    *,
    below: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
    note: str = "",
    credit: str = "",
) -> Figure:
    """Pictures in [0, 1], one row of them a label, under all of them the lines `note` and `credit`.

    `below` has, by the label of a row, a text to stand under each of its pictures. Raises ValueError where a row has
    not one picture, or one text, a column.
    """
    below = below or {}
    _check_grid(rows, columns, below)
    labels = [wrapped(label, 16 if len(columns) < 6 else 11) for label in rows]
    margin = 0.2 + 0.075 * max(len(line) for label in labels for line in label.split("\n"))
    cell = min(1.1, (WIDTH - margin) / len(columns))
    heads = [wrapped(name, max(8, int(cell * 17))) for name in columns]
    texts = {label: [wrapped(text, max(9, int(cell * 19))) for text in cells] for label, cells in below.items()}
    height = cell * len(rows) + 0.15 * _most_lines(heads) + 0.25 * bool(title)
    height += sum(0.11 * _most_lines(cells) + 0.08 for cells in texts.values())
    figure = Figure(figsize=(max(2.4, margin + cell * len(columns)), height))
    figure.set_layout_engine("compressed", w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, label, (name, pictures) in zip(axes, labels, rows.items(), strict=True):
        for axis, picture, text in zip(line, pictures, texts.get(name, [""] * len(columns)), strict=True):
            draw_picture(axis, picture)
            axis.set_xlabel(text, fontsize=6.5)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=7.5 if cell > 0.7 else 6.5)
    if title:
        figure.suptitle(title)
    caption(figure, note)
    caption(figure, credit)
    return figure


def _check_grid(rows: Mapping, columns: Sequence[str], below: Mapping[str, Sequence[str]]) -> None:
    if not rows or not columns:
        raise ValueError(f"the grid is {len(rows)} × {len(columns)}: it must have a row and a column.")
    for kind, content in (("pictures", rows), ("texts", below)):
        for label, cells in content.items():
            if label not in rows:
                raise ValueError(f"below has texts of the row {label!r}: it must be one of {', '.join(rows)}.")
            if len(cells) != len(columns):
                raise ValueError(f"row {label!r} has {len(cells)} {kind} for {len(columns)} columns.")


def _most_lines(texts: Iterable[str]) -> int:
    return max(text.count("\n") + 1 for text in texts)


@styled
def saliency_maps(
    images: Float[Tensor, "k 3 h w"],
    scores: Float[Tensor, "k token"],
    masked: Bool[Tensor, "k token"],
    captions: list[str],
    *,
    credit: str = "",
) -> Figure:
    """A column a picture: as it is, under its token scores, and with the masked tokens hatched out.

    Tokens are the cells of a square grid over the picture, row by row. Scores are divided by the picture's highest and
    shown on a log scale from 1/1000. Raises ValueError for tokens that make no square.
    """
    _check_maps(images, scores, masked, captions)
    k, tokens = scores.shape
    cell = min(1.3, (WIDTH - 1.6) / k)
    titles = [wrapped(text, max(12, int(cell * 17))) for text in captions]
    figure = Figure(figsize=(max(3.0, 1.6 + cell * k), 3 * cell + 0.13 * _most_lines(titles) + 0.2))
    figure.set_layout_engine("compressed", w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = figure.subplots(3, k, squeeze=False)
    for column, (top, middle, bottom) in enumerate(axes.T):
        draw_picture(top, images[column])
        top.set_title(titles[column], fontsize=6.5)
        heat = draw_saliency(middle, images[column], scores[column])
        draw_masked(bottom, images[column], masked[column])
    for axis, label in zip(axes[:, 0], ("picture", "saliency", "masked"), strict=True):
        axis.set_ylabel(label)
    bar = figure.colorbar(heat, ax=axes, shrink=0.3, aspect=12, pad=0.02)
    bar.set_label("score / picture's\nhighest (log)", fontsize=6.5)
    bar.ax.tick_params(labelsize=6.5)
    bar.outline.set_linewidth(0.5)
    side = math.isqrt(tokens)
    caption(figure, f"Hatched: masked vision tokens, of {tokens} in a {side} × {side} grid.")
    caption(figure, credit)
    return figure


def _check_maps(images: Tensor, scores: Tensor, masked: Tensor, captions: Sequence[str]) -> None:
    k, tokens = scores.shape
    if math.isqrt(tokens) ** 2 != tokens or not tokens:
        raise ValueError(f"scores holds {tokens} tokens a picture: they must make a square grid.")
    if not k or not k == len(images) == len(masked) == len(captions):
        there = f"{len(images)} images, {k} scores, {len(masked)} masks and {len(captions)} captions"
        raise ValueError(f"there are {there}: they must be as many, one at least.")
    if not bool((scores >= 0).all()):
        raise ValueError("scores holds negative values or NaN: scores are 0 or more.")


def draw_picture(axis: Axes, picture: Float[Tensor, "3 h w"]) -> None:
    axis.imshow(picture.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=True, color="0.7", linewidth=0.5)


def draw_saliency(axis: Axes, picture: Float[Tensor, "3 h w"], scores: Float[Tensor, " token"]) -> AxesImage:
    """Token scores over the greyed picture, divided by the highest, on a log scale from 1/1000."""
    side, (height, width) = math.isqrt(len(scores)), picture.shape[1:]
    draw_picture(axis, 0.5 + 0.5 * picture.mean(0, keepdim=True).expand_as(picture))
    return axis.imshow(
        (scores / scores.max().clamp_min(1e-30)).clamp(1e-3, 1).view(side, side).cpu().numpy(),
        cmap="YlOrRd",
        norm=LogNorm(1e-3, 1),
        alpha=0.7,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )


def draw_masked(axis: Axes, picture: Float[Tensor, "3 h w"], masked: Bool[Tensor, " token"]) -> None:
    """The picture with the masked tokens hatched out."""
    draw_picture(axis, picture)
    side = math.isqrt(len(masked))
    down, right = picture.shape[1] / side, picture.shape[2] / side
    cells = [
        Rectangle((token % side * right - 0.5, token // side * down - 0.5), right, down)
        for token in masked.nonzero()[:, 0].tolist()
    ]
    hatched = PatchCollection(cells, facecolor="0.8", edgecolor="0.35", linewidth=0.3, hatch="//////")
    axis.add_collection(hatched, autolim=False)
