"""One style for every figure: readable in print and without colour.

    figure = dots(table, "defence", "metric")   # the last expression of a notebook's cell shows it
    caption(figure, "Laptop profile, seed 0.")  # adds small print under it
    Path("figure.pdf").write_bytes(render(figure, "pdf"))

A figure is drawn from numbers and touches neither pyplot's state nor a file. Intervals are those of the tables: columns
`low` and `high`, NaN for none. A table that lacks a column is a ValueError.
"""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path

import matplotlib.figure
import matplotlib.style
import numpy as np
import pandas as pd
import seaborn
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

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
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
# Looks of marks that stand at the same height: of those in one place each is seen round the next.
POINT = {"marker": "o", "color": "black", "markersize": 3.5, "linestyle": "none", "zorder": 4}
TICK = {"marker": "|", "color": "0.35", "markersize": 7, "linestyle": "none", "zorder": 3}
SQUARE = TICK | {"marker": "s", "markerfacecolor": "white", "markersize": 5.5, "zorder": 2}
DIAMOND = SQUARE | {"marker": "D", "color": PALETTE[1], "markeredgewidth": 1.3, "markersize": 7.5, "zorder": 1.5}


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
def caption(figure: Figure, text: str) -> Figure:
    """The figure with small print added under it, wrapped to its width. It grows by the lines."""
    if not text:
        return figure
    before = figure.get_supxlabel()
    lines = wrapped(text, int(19.5 * figure.get_figwidth())).splitlines()
    figure.supxlabel("\n".join(filter(None, [before, *lines])), x=0.01, ha="left", fontsize=6.5, color="0.25")
    figure.set_figheight(figure.get_figheight() + 0.11 * len(lines) + (0 if before else 0.1))
    return figure


@styled
def legend(figure: Figure, handles: list, labels: list[str]) -> None:
    """Above the axes, in at most four columns: three of long labels, two where three would be wider than the figure.

    The figure grows by its lines.
    """
    lengths = [len(label) for label in labels]
    most = 4 if max(lengths, default=0) <= 20 else 3
    if most == 3 and sum(map(max, np.array_split(lengths, min(3, len(lengths))))) > LETTERS:
        most = 2
    lines = math.ceil(len(labels) / most)
    columns = math.ceil(len(labels) / lines)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.4)
    figure.set_figheight(figure.get_figheight() + 0.15 * lines + 0.1)


def require(table: pd.DataFrame, *columns: str, name: str = "table") -> None:
    """Raises ValueError where the table lacks one of the columns, or has no row."""
    missing = [column for column in columns if column not in table]
    if missing:
        there = ", ".join(map(str, table))
        raise ValueError(f"{name} has the columns {there}: it lacks {', '.join(missing)}.")
    if table.empty:
        raise ValueError(f"{name} has no row: there must be one.")


def counts(table: pd.DataFrame) -> str:
    """n = 500, or each metric's n where they differ."""
    metrics: dict[str, list[str]] = {}
    for metric, n in table.groupby("metric", sort=False)["n"]:
        span = f"n = {n.min():.0f}" if n.min() == n.max() else f"n = {n.min():.0f} to {n.max():.0f}"
        metrics.setdefault(span, []).append(metric)
    if len(metrics) == 1:
        return next(iter(metrics))
    return ", ".join(f"{span} ({', '.join(names)})" for span, names in metrics.items())


def wrapped(text: str, width: int) -> str:
    """In lines of at most that many letters. A longer word is one line, as it is; "n = 5", "5 %" are words."""
    joined = text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")
    return textwrap.fill(joined, width, break_long_words=False, break_on_hyphens=False).replace("\u00a0", " ")


def signed(value: float, digits: int) -> str:
    """With a minus sign, and none before a zero."""
    return f"{value:z.{digits}f}".replace("-", "−")


def reach(table: pd.DataFrame) -> np.ndarray | None:
    """How far `low` and `high` are from `value`, or None where there is no interval."""
    spans = np.clip([table["value"] - table["low"], table["high"] - table["value"]], 0, None)
    return spans if np.isfinite(spans).any() else None


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


def nested_style(style: int, count: int) -> dict:
    """Of line `style` of `count` that may coincide: the first broad, pale and with a large marker, the last thin."""
    rest, colour = (count - 1 - style) / max(count - 1, 1), PALETTE[style % len(PALETTE)]
    return line_style(style) | {
        "color": [part + 0.6 * rest * (1 - part) for part in colour],
        "markersize": 3 + 5.5 * rest,
        "markerfacecolor": "none",
        "markeredgecolor": colour,
        "linewidth": 1 + 3 * rest,
        "zorder": 2 + 0.01 * style,
    }


def bar_style(style: int) -> dict:
    light = [0.45 + 0.55 * part for part in PALETTE[style % len(PALETTE)]]
    return {"facecolor": light, "edgecolor": "0.15", "linewidth": 0.6, "hatch": HATCHES[style % len(HATCHES)]}


def log_axis(axis: Axes, along: str = "y") -> None:
    """Logarithmic along x or y, with plain numbers: over more than two decades its powers of ten alone."""
    getattr(axis, f"set_{along}scale")("log")
    ticks = getattr(axis, f"{along}axis")
    low, high = getattr(axis, f"get_{along}lim")()
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_locator(NullLocator())


def share_axis(axis: Axes, along: str = "y") -> None:
    """From 0 to 1 along x or y, with room for a marker; along x there is none for the quarters' numbers."""
    room = 0.04 if along == "y" else 0.06
    axis.set(**{f"{along}lim": (-room, 1 + room)})
    ticks = [0, 0.25, 0.5, 0.75, 1] if along == "y" else [0, 0.5, 1]
    getattr(axis, f"set_{along}ticks")(ticks, [f"{tick:g}" for tick in ticks])
