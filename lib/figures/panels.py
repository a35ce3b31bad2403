"""Figures of numbers: `dots` by row, `bands` against x, `bars` by group, each with its intervals, in panels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lib.figures.style import (
    WIDTH,
    Figure,
    caption,
    legend,
    line_style,
    log_axis,
    nested_style,
    reach,
    require,
    share_axis,
    styled,
    wrapped,
)

LONG = 50  # letters of a row of `dots`, of which any more are smaller
ACROSS = 3  # panels of `bands` side by side
LOSS, SHARE = "training loss", "share"  # rows of `training_curves`


@styled
def dots(
    table: pd.DataFrame,
    row: str,
    panel: str,
    mark: str = "",
    *,
    looks: Mapping[str, dict] | None = None,
    shares: Collection[str] | None = None,
    at: float | None = None,
    missing: str = "",
    xlabel: str = "",
    note: str = "",
) -> Figure:
    """A line per value of the column `row`, a panel per value of `panel`: a dot at `value`, from `low` to `high`.

    mark     The column by which dots of one line differ. Each of its values has a height of its rows.
    looks    By value of `mark`: then all are at one height and look as this says.
    shares   The panels that reach from 0 to 1, by default all.
    at       Where a line to compare with stands.
    missing  What is written on a line without a value, beside its marks. With `looks`: without one of the first look.
    note     The caption.
    """
    data = _renamed(table, row=row, panel=panel, mark=mark)
    rows, panels, marks = (list(data[column].unique()) for column in ("row", "panel", "mark"))
    offsets = {name: 0.7 * ((len(marks) - 1) / 2 - k) / len(marks) for k, name in enumerate(marks)}
    if looks:
        offsets = {name: 0.0 for name in looks if name in marks}
    looks = looks or {name: line_style(k) | {"linestyle": "none", "markersize": 3.5} for k, name in enumerate(marks)}
    lanes = len(set(offsets.values()))
    data["height"] = data["row"].map({name: len(rows) - 1 - k for k, name in enumerate(rows)})
    letters = int((WIDTH - 0.055 * min(max(map(len, rows)), 3 * LONG // 2)) / len(panels) / 0.075)
    titles = [wrapped(name, letters) for name in panels]
    most = max(title.count("\n") for title in titles)
    figure = Figure(figsize=(WIDTH, (0.075 * lanes + 0.125) * len(rows) + 0.6 + 0.13 * most))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, name, title in zip(axes, panels, titles, strict=True):
        part = data[data["panel"] == name]
        _draw_dots(axis, part, offsets, looks)
        measured = part["height"][part["value"].notna() & part["mark"].isin(list(offsets)[: 1 if lanes == 1 else None])]
        _dots_axis(axis, shares is None or name in shares, len(panels))
        if at is not None:
            axis.axvline(at, color="0.7", linewidth=0.6, zorder=1)
        _write_missing(axis, part, set(range(len(rows))) - set(measured), missing)
        for edge in range(1, len(rows) if lanes > 1 else 0):
            axis.axhline(edge - 0.5, color="0.9", linewidth=0.5, zorder=1)
        axis.set_title(title, fontsize=8 if len(panels) < 4 else 7)
        axis.set_xlabel(xlabel)
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    size = 6.5 if max(map(len, rows)) <= LONG else 5.5
    axes[0].set_yticks(range(len(rows))[::-1], [wrapped(line, 3 * LONG // 2) for line in rows], fontsize=size)
    if len(offsets) > 1:
        legend(figure, [Line2D([], [], **looks[kind]) for kind in offsets], list(offsets))
    caption(figure, note)
    return figure


def _draw_dots(
    axis: Axes, data: pd.DataFrame, offsets: Mapping[str, float], looks: Mapping[str, Mapping[str, object]]
) -> None:
    for kind, offset in offsets.items():
        points = data[data["mark"] == kind]
        height = points["height"] + offset
        style = {"capsize": 1.5, "elinewidth": 0.8} | looks[kind]
        axis.errorbar(points["value"], height, xerr=reach(points), **style)


def _write_missing(axis: Axes, data: pd.DataFrame, heights: Collection[int], text: str) -> None:
    """The text on these lines, in the middle of the widest gap between the other marks."""
    start, end = axis.get_xlim()
    where = {"transform": axis.get_yaxis_transform(), "ha": "center", "va": "center"}
    for height in heights if text else ():
        marks = (data["value"][data["height"] == height].dropna() - start) / (end - start)
        left, right = max(itertools.pairwise(sorted([0.0, *marks, 1.0])), key=lambda gap: gap[1] - gap[0])
        axis.text((left + right) / 2, height, text, fontsize=6, style="italic", **where)


def _dots_axis(axis: Axes, share: bool, panels: int) -> None:
    axis.grid(axis="x", which="both", color="0.9", linewidth=0.5)
    if share:
        share_axis(axis, "x")
        axis.set_xticks([0.25, 0.75], minor=True)
        axis.tick_params(axis="x", which="minor", length=0)
    else:
        axis.margins(x=0.12)
        axis.xaxis.set_major_locator(MaxNLocator(max(3, 9 // panels), steps=[1, 2, 5, 10]))


@styled
def bands(
    table: pd.DataFrame,
    x: str,
    series: str,
    *,
    row: str = "",
    column: str = "",
    shares: Collection[str] | None = None,
    at: float | None = None,
    xlabel: str = "",
    ylabel: str = "",
    sharey: str = "row",
    whiskers: bool = False,
    nested: bool = False,
    note: str = "",
) -> Figure:
    """A line of `value` per value of the column `series` against `x`, with a band from `low` to `high`.

    row, column  Columns by whose values there are rows and columns of panels. Beyond three panels side by side the
                 columns go on below. A series with the name of its row has no place in the legend.
    shares       The rows that reach from 0 to 1, by default all.
    at           Where a line to compare with stands.
    sharey       Which panels have one y axis: those of a "row", "all" or "none".
    whiskers     Intervals are drawn at each point and not as bands.
    nested       Of lines that coincide all are seen: each is thinner and its marker smaller than those before it.
    note         The caption.
    """
    data = _renamed(table, x=x, series=series, row=row, column=column)
    data["x"] = data["x"].astype(float)
    rows, columns = (list(data[name].unique()) for name in ("row", "column"))
    stacks = math.ceil(len(columns) / ACROSS)
    across = math.ceil(len(columns) / stacks)
    looks = {name: _line_looks(list(part["series"].unique()), nested) for name, part in data.groupby("row")}
    figure = Figure(figsize=(WIDTH, (1.45 if stacks * len(rows) < 5 else 1.2) * stacks * len(rows) + 0.5))
    grid = figure.subplots(stacks * len(rows), across, squeeze=False)
    for (c, right), (r, down) in itertools.product(enumerate(columns), enumerate(rows)):
        top = c // across * len(rows)
        axis = grid[top + r, c % across]
        _share_axes(axis, grid, top + r, top + len(rows) - 1, c % across, sharey)
        if at is not None:
            axis.axhline(at, color="0.7", linewidth=0.6)
        _draw_lines(axis, data[(data["row"] == down) & (data["column"] == right)], looks[down], whiskers, not nested)
        if shares is None or down in shares:
            share_axis(axis)
        axis.set_title(wrapped(right, 60 // across) if r == 0 else "")
        axis.set_xlabel(xlabel if r == len(rows) - 1 else "")
        axis.set_ylabel(wrapped(down or ylabel, 20) if c % across == 0 else "")
    for empty in grid[-len(rows) :, len(columns) - across * (stacks - 1) :].flat:
        empty.remove()
    _line_legends(figure, grid, {name: looks[name] for name in rows})
    caption(figure, note)
    return figure


def _line_looks(names: list[str], nested: bool) -> dict[str, dict]:
    return {name: nested_style(k, len(names)) if nested else line_style(k) for k, name in enumerate(names)}


def _share_axes(axis: Axes, grid: np.ndarray, row: int, last: int, column: int, sharey: str) -> None:
    """x with the last panel of the same stack, y as `sharey` says. Tick labels stand once."""
    if row < last:
        axis.sharex(grid[last, column])
        axis.tick_params(labelbottom=False)
    first = {"row": grid[row, 0], "all": grid[0, 0], "none": axis}[sharey]
    if first is not axis:
        axis.sharey(first)
        axis.tick_params(labelleft=column == 0)


def _draw_lines(axis: Axes, data: pd.DataFrame, looks: Mapping[str, dict], whiskers: bool, clip: bool) -> None:
    for name, look in looks.items():
        line = data[data["series"] == name].sort_values("x")
        spans = reach(line)
        if line.empty:
            continue
        style = {"elinewidth": 0.6, "capsize": 1.5, "clip_on": clip, **look}
        drawn = axis.errorbar(line["x"], line["value"], yerr=spans if whiskers else None, **style)
        drawn.lines[0].set_label(name)
        if spans is not None and not whiskers:
            axis.fill_between(line["x"], line["low"], line["high"], color=look["color"], alpha=0.15, linewidth=0)


def _line_legends(figure: Figure, grid: np.ndarray, looks: Mapping[str, Mapping[str, dict]]) -> None:
    """One above all panels where every row has the same series, else one beside each row."""
    keyed = {row: {name: look for name, look in lines.items() if name != row} for row, lines in looks.items()}
    handles = {row: [Line2D([], [], **look) for look in lines.values()] for row, lines in keyed.items()}
    different = {tuple(lines): row for row, lines in keyed.items() if lines}
    if len(different) == 1:
        ((names, row),) = different.items()
        legend(figure, handles[row], list(names))
        return
    for axis, row in zip(grid[:, -1], keyed, strict=False):
        axis.legend(handles[row], list(keyed[row]), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=6.5)


@styled
def training_curves(curves: Mapping[str, pd.DataFrame], watched: Mapping[str, str], *, note: str = "") -> Figure:
    """The loss of each run and, below, its watched shares (column → label) against the step.

    Frames have the columns step and loss; watched ones may be missing. `note` stands under all.
    """
    if not curves:
        raise ValueError("curves is empty: there must be a run.")
    points = []
    for run, curve in curves.items():
        require(curve, "step", "loss", name=f"the curve of {run!r}")
    lines = [(LOSS, "loss", LOSS), *((SHARE, column, label) for column, label in watched.items())]
    for (row, column, label), (run, curve) in itertools.product(lines, curves.items()):
        if column in curve:
            line = curve[["step", column]].dropna().set_axis(["step", "value"], axis=1)
            points.append(line.assign(run=run, row=row, line=label, low=np.nan, high=np.nan))
    layout = {"row": "row", "column": "run", "shares": (SHARE,), "sharey": "none", "nested": True}
    figure = bands(pd.concat(points), "step", "line", xlabel="training step", note=note, **layout)
    for axis in figure.axes:
        if any(line.get_label() == LOSS for line in axis.lines):
            _loss_axis(axis)
    return figure


def _loss_axis(axis: Axes) -> None:
    """Grey, without markers, and on a log scale where it can be."""
    (line,) = axis.lines
    line.set(color="0.2", linewidth=1, marker="o" if len(line.get_xdata()) == 1 else "")
    if min(line.get_ydata()) > 0:
        log_axis(axis)


def _renamed(table: pd.DataFrame, **columns: str) -> pd.DataFrame:
    """The columns value, low and high as numbers, and those asked for under their part in the figure, "" for none."""
    require(table, *filter(None, columns.values()), "value", "low", "high")
    parts = {part: table[column] if column else "" for part, column in columns.items()}
    return table[["value", "low", "high"]].astype(float).assign(**parts)
