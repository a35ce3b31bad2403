"""The figures, one function each, in one style: readable in print and without colour.

    figure = before_after(table)                # the last expression of a notebook's cell shows it
    caption(figure, "Laptop profile, seed 0.")  # adds a line under it
    Path("figure.pdf").write_bytes(render(figure, "pdf"))

Each function takes numbers, returns a Figure and touches neither pyplot's state nor a file. Intervals are
those of the tables: columns `low` and `high`, NaN for none. Tables that lack a column are a ValueError.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import matplotlib.style
import numpy as np
import pandas as pd
import seaborn
from jaxtyping import Bool, Float
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

WIDTH = 5.5  # inches, the text width of a conference page
LETTERS = 76  # of three labels beside one another in a legend
DPI = {"png": 200, "pdf": 300}
STYLE = {
    **seaborn.axes_style("ticks"),
    **seaborn.plotting_context("paper", font_scale=0.85),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
PALETTE = seaborn.color_palette("colorblind")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
COALITIONS = {"none": "∅", "image": "{I}", "text": "{T}", "both": "{I, T}"}
QUANTITIES = {"phi_image": r"$\phi_I$", "phi_text": r"$\phi_T$", "cti": "CTI"}

def bundled_fonts() -> None:
    """DejaVu as it comes with matplotlib in the place of a system's, whose letters may differ."""
    fonts = font_manager.fontManager
    fonts.ttflist = [font for font in fonts.ttflist if not font.name.startswith("DejaVu")]
    for file in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf")):
        fonts.addfont(file)


bundled_fonts()
styled = matplotlib.style.context(["default", STYLE])


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows with or without a pyplot backend."""

    def _repr_png_(self):
        return render(self, "png"), shown_size(self)


def shown_size(figure: matplotlib.figure.Figure) -> dict[str, int]:
    """Width and height, in pixels, of the figure in a notebook."""
    width, height = figure.get_size_inches()
    return {"width": round(110 * width), "height": round(110 * height)}


@styled
def render(figure: matplotlib.figure.Figure, kind: str) -> bytes:
    """The figure as a file, "png" or "pdf", byte for byte the same again. Settles its layout for good."""
    if kind not in DPI:
        raise ValueError(f"kind is {kind!r}; allowed are {', '.join(DPI)}.")
    if figure.get_layout_engine() is not None:
        screen = figure.get_dpi()
        figure.set_dpi(DPI["png"])
        for _ in range(2):  # the second time with the extents that the first gave
            figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.set_dpi(screen)
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=DPI[kind], metadata=metadata)
    return content.getvalue()


@styled
def caption(figure: matplotlib.figure.Figure, text: str) -> None:
    """Add a line of small print under the figure, wrapped to its width."""
    wrapped = textwrap.fill(text, int(19.5 * figure.get_figwidth()), break_on_hyphens=False)
    lines = [line for line in (figure.get_supxlabel(), wrapped) if line]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color="0.25")


@styled
def image_grid(
    rows: Mapping[str, Float[Tensor, "column 3 h w"]],
    columns: Sequence[str],
    *,
    below: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
    about: str = "",
    credit: str = "",
) -> Figure:
    """Pictures in [0, 1], one row of them a label, under all of them the lines `about` and `credit`.

    `below` has, by the label of a row, a text to stand under each of its pictures. Raises ValueError where a row has
    not one picture, or one text, a column.
    """
    below = below or {}
    if not rows or not columns:
        raise ValueError(f"the grid is {len(rows)} × {len(columns)}: it must have a row and a column.")
    for kind, given in (("pictures", rows), ("texts", below)):
        for label, cells in given.items():
            if label not in rows:
                raise ValueError(f"below has texts of the row {label!r}: it must be one of {', '.join(rows)}.")
            if len(cells) != len(columns):
                raise ValueError(f"row {label!r} has {len(cells)} {kind} for {len(columns)} columns.")
    labels = [_wrapped(label, 16 if len(columns) < 6 else 11) for label in rows]
    margin = 0.2 + 0.075 * max(len(line) for label in labels for line in label.split("\n"))
    cell = min(1.1, (WIDTH - margin) / len(columns))
    heads = [_wrapped(name, max(8, int(cell * 17))) for name in columns]
    texts = {label: [_wrapped(text, max(9, int(cell * 19))) for text in cells] for label, cells in below.items()}
    width = max(2.4, margin + cell * len(columns))
    tall = 0.15 * _lines(heads) + 0.25 * bool(title) + _caption_height(width, about, credit)
    tall += sum(0.11 * _lines(cells) + 0.08 for cells in texts.values())
    figure = Figure(figsize=(width, cell * len(rows) + tall))
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
    for text in filter(None, (about, credit)):
        caption(figure, text)
    return figure


def _wrapped(text: str, width: int) -> str:
    """In lines of at most that many letters; a longer word is one line, as it is."""
    return textwrap.fill(text, width, break_long_words=False)


def _lines(texts: Iterable[str]) -> int:
    """Of the longest text."""
    return max(text.count("\n") + 1 for text in texts)


def _caption_height(width: float, *texts: str) -> float:
    """Inches that `caption` takes for these texts under a figure of that width."""
    lines = sum(len(textwrap.wrap(text, int(19.5 * width), break_on_hyphens=False)) for text in texts)
    return 0.11 * lines + 0.2 * bool(lines)


@styled
def training_curves(curves: Mapping[str, pd.DataFrame], watched: Mapping[str, str], *, about: str = "") -> Figure:
    """A pair of panels a run, at most three side by side: the loss and, below, the watched shares against the step.

    `watched`: column → label. Of lines that coincide all are seen: each is thinner and its marker smaller than those
    before it. `about` stands under all. Frames have the columns step and loss, as `lib.training.fit` returns them;
    watched ones may be missing.
    """
    if not curves:
        raise ValueError("curves is empty: there must be a run.")
    for run, curve in curves.items():
        require(curve, "step", "loss", name=f"the curve of {run!r}")
    lines = {column: label for column, label in watched.items() if any(column in c for c in curves.values())}
    bands = math.ceil(len(curves) / 3)
    wide, count = math.ceil(len(curves) / bands), 2 if lines else 1
    width = WIDTH if wide > 1 else 3.4
    tall = bands * (2.6 if lines else 1.7) + 0.17 * math.ceil(len(lines) / 3) + 0.1 + _caption_height(width, about)
    figure = Figure(figsize=(width, tall))
    axes = figure.subplots(bands * count, wide, squeeze=False, height_ratios=([1, 1.3] if lines else [1]) * bands)
    for index, (run, curve) in enumerate(curves.items()):
        band, place = divmod(index, wide)
        panels = axes[count * band : count * (band + 1), place]
        _loss(panels[0], curve)
        panels[0].set_title(textwrap.fill(run, 60 // wide))
        panels[-1].set_xlabel("training step")
        if lines:
            panels[0].sharex(panels[1])
            panels[0].tick_params(labelbottom=False)
            for style, column in enumerate(lines):
                if column in curve:
                    points = curve[["step", column]].dropna()
                    panels[1].plot(points["step"], points[column], clip_on=False, **_nested_style(style, len(lines)))
            share_axis(panels[1])
            panels[1].set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        if not place:
            for panel, name in zip(panels, ("training loss", "share"), strict=False):
                panel.set_ylabel(name)
    for empty in axes[count * (bands - 1) :, len(curves) - wide * (bands - 1) :].flat:
        empty.remove()
    if lines:
        handles = [Line2D([], [], **_nested_style(style, len(lines))) for style in range(len(lines))]
        legend(figure, handles, list(lines.values()))
    caption(figure, about)
    return figure


def _loss(axis: Axes, curve: pd.DataFrame) -> None:
    """On a log scale where it can be."""
    axis.plot(curve["step"], curve["loss"], color="0.2", linewidth=1, marker="o" if len(curve) == 1 else "")
    if (curve["loss"].dropna() > 0).all():
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def _nested_style(style: int, count: int) -> dict:
    """Of line `style` of `count`: the first broad, pale and with a large marker, the last thin."""
    rest, colour = (count - 1 - style) / max(count - 1, 1), PALETTE[style % len(PALETTE)]
    return line_style(style) | {
        "color": [part + 0.6 * rest * (1 - part) for part in colour],
        "markersize": 3 + 5.5 * rest,
        "markerfacecolor": "none",
        "markeredgecolor": colour,
        "linewidth": 1 + 3 * rest,
        "zorder": 2 + 0.01 * style,
    }


@styled
def ratio_curves(table: pd.DataFrame) -> Figure:
    """Shares against the ratio ρ of masked vision tokens, a panel a metric, a line a method (DiSP figure 2).

    Columns method, ratio, metric, value, low, high, n.
    """
    require(table, "method", "ratio", "metric", "value", "low", "high", "n")
    metrics, methods = table["metric"].unique(), table["method"].unique()
    figure = Figure(figsize=(WIDTH if len(metrics) > 1 else 3.4, 2.5))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for style, method in enumerate(methods):
            rows = table[(table["metric"] == metric) & (table["method"] == method)].sort_values("ratio")
            axis.plot(rows["ratio"], rows["value"], **line_style(style))
            band = {"color": PALETTE[style % len(PALETTE)], "alpha": 0.2, "linewidth": 0}
            axis.fill_between(rows["ratio"], rows["low"], rows["high"], **band)
        axis.set_title(textwrap.fill(metric, 60 // len(metrics)))
        axis.set_xlabel(r"mask ratio $\rho$")
        share_axis(axis)
    axes[0].set_ylabel("share of answers")
    handles = [Line2D([], [], **line_style(style)) for style in range(len(methods))]
    legend(figure, handles, list(methods))
    caption(figure, f"Bands: 95 % Wilson intervals over pictures, {counts(table)}.")
    return figure


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

    Tokens are the cells of a square grid over the picture, row by row. Scores are divided by the picture's
    highest and shown on a log scale from 1/1000. Raises ValueError for tokens that make no square.
    """
    k, tokens = scores.shape
    side = math.isqrt(tokens)
    if side**2 != tokens or not tokens:
        raise ValueError(f"scores holds {tokens} tokens a picture: they must make a square grid.")
    if not k or not k == len(images) == len(masked) == len(captions):
        counts = f"{len(images)} images, {k} scores, {len(masked)} masks and {len(captions)} captions"
        raise ValueError(f"there are {counts}: they must be as many, one at least.")
    if not bool((scores >= 0).all()):
        raise ValueError("scores holds negative values or NaN: scores are 0 or more.")
    cell = min(1.3, (WIDTH - 1.6) / k)
    titles = [textwrap.fill(text, max(12, int(cell * 17))) for text in captions]
    head = 0.13 * max(text.count("\n") + 1 for text in titles)
    figure = Figure(figsize=(max(3.0, 1.6 + cell * k), 3 * cell + head + 0.5))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
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
    caption(figure, f"Hatched: masked vision tokens, of {tokens} in a {side} × {side} grid.")
    caption(figure, credit)
    return figure


@styled
def before_after(table: pd.DataFrame) -> Figure:
    """Shares of each model side by side, one group of bars a metric, the values written above.

    Columns model, metric, value, low, high, and n if the caption is to state it.
    """
    require(table, "model", "metric", "value", "low", "high")
    models, metrics = table["model"].unique(), table["metric"].unique()
    figure = Figure(figsize=(WIDTH if len(metrics) > 1 else 3.4, 2.6))
    axis = figure.subplots()
    wide = 0.84 / len(models)
    for style, model in enumerate(models):
        rows = _in_order(table[table["model"] == model], "metric", metrics)
        place = np.arange(len(metrics)) + (style - (len(models) - 1) / 2) * wide
        draw_bars(axis, place, rows, wide * 0.9, style=style, digits=3)
    axis.set_xticks(range(len(metrics)), [textwrap.fill(metric, 72 // len(metrics)) for metric in metrics])
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(0, 1.12)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_ylabel("share of answers")
    legend(figure, [_patch(style) for style in range(len(models))], list(models))
    counted = f", {counts(table)}" if "n" in table else ""
    caption(figure, f"Lines on the bars: 95 % Wilson intervals over pictures{counted}.")
    return figure


def require(table: pd.DataFrame, *columns: str, name: str = "table") -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        there = ", ".join(map(str, table))
        raise ValueError(f"{name} has the columns {there}: it lacks {', '.join(missing)}.")
    if table.empty:
        raise ValueError(f"{name} has no row: there must be one.")


def _in_order(table: pd.DataFrame, column: str, order: Iterable[str]) -> pd.DataFrame:
    """One row for each of `order` by its value in the column, NaN where the table has none."""
    twice = table[column][table[column].duplicated()]
    if len(twice):
        raise ValueError(f"table has two rows for {column} {twice.iloc[0]!r} of one panel or model.")
    return table.set_index(column).reindex(list(order))


def counts(table: pd.DataFrame) -> str:
    """n = 500, or each metric's n where they differ."""
    metrics: dict[str, list[str]] = {}
    for metric, n in table.groupby("metric", sort=False)["n"]:
        span = f"n = {n.min():.0f}" if n.min() == n.max() else f"n = {n.min():.0f} to {n.max():.0f}"
        metrics.setdefault(span, []).append(metric)
    if len(metrics) == 1:
        return next(iter(metrics))
    return ", ".join(f"{span} ({', '.join(names)})" for span, names in metrics.items())


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


def draw_bars(
    axis: Axes, place: np.ndarray, rows: pd.DataFrame, width: float, *, style: int, digits: int
) -> None:
    """Bars with their intervals and, beyond those, their values."""
    value, low, high = (rows[column].to_numpy(float) for column in ("value", "low", "high"))
    axis.bar(place, value, width, **_bar(style))
    reach = np.clip([value - low, high - value], 0, None)
    axis.errorbar(place, value, reach, fmt="none", ecolor="black", elinewidth=0.9, capsize=2, capthick=0.9)
    axis.axhline(0, color="black", linewidth=0.6)
    for x, v, bottom, top in zip(place, value, low, high, strict=True):
        if math.isfinite(v):
            end = np.nanmin([v, bottom]) if v < 0 else np.nanmax([v, top])
            text = f"{v:.{digits}f}".replace("-", "−")
            axis.annotate(
                text, (x, end), (0, -3 if v < 0 else 3), textcoords="offset points", ha="center",
                va="top" if v < 0 else "bottom", fontsize=6.5,
            )  # fmt: skip
    axis.margins(y=0.15)


def _bar(style: int) -> dict:
    light = [0.45 + 0.55 * part for part in PALETTE[style % len(PALETTE)]]
    return {"facecolor": light, "edgecolor": "0.15", "linewidth": 0.6, "hatch": HATCHES[style % len(HATCHES)]}


def _patch(style: int) -> Patch:
    return Patch(**_bar(style))


def line_style(style: int) -> dict:
    return {
        "color": PALETTE[style % len(PALETTE)],
        "linestyle": LINES[style % len(LINES)],
        "marker": MARKERS[style % len(MARKERS)],
        "markersize": 5 if style % 2 else 3.5,
        "markerfacecolor": "white" if style % 2 else None,
        "linewidth": 1.2,
        "zorder": 3 - 0.01 * style,  # a line over those after it, whose larger, hollow markers still show
    }


def paper_style() -> dict:
    return {
        "marker": "D",
        "markersize": 4.5,
        "color": PALETTE[1],
        "markeredgecolor": "black",
        "linestyle": "none",
    }


def share_axis(axis: Axes) -> None:
    """From 0 to 1, with room for a marker."""
    axis.set_ylim(-0.04, 1.04)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def legend(figure: Figure, handles: list, labels: list[str]) -> None:
    """Above the axes, in at most four columns: three of long labels, two where three would be wider than the figure."""
    lengths = [len(label) for label in labels]
    most = 4 if max(lengths, default=0) <= 20 else 3
    if most == 3 and sum(map(max, np.array_split(lengths, min(3, len(lengths))))) > LETTERS:
        most = 2
    columns = math.ceil(len(labels) / math.ceil(len(labels) / most))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.4)
