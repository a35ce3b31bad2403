"""Plots of benchmark tables, in the style of the other figures."""

from __future__ import annotations

from itertools import product

import pandas as pd

from lib.figures.panels import bands, dots
from lib.figures.style import Figure, log_axis, render, styled
from lib.runtime.store import write_atomic

OVERLAPS = {"overlap": "overlap with the exact score", "occlusion_overlap": "overlap with occlusion"}


@styled
def ratio_dots(table: pd.DataFrame) -> Figure:
    """A benchmark's ratios with quartiles on a logarithmic axis, a row each; columns case, ours, peer, ratio, …"""
    label = table["case"] + ": " + table["ours"] + " vs " + table["peer"]
    rows = table.rename(columns={"ratio": "value", "ratio_low": "low", "ratio_high": "high"})
    rows = rows.assign(label=label, panel="peer's time / ours (median, quartiles)")
    figure = dots(rows, "label", "panel", shares=(), at=1.0)
    log_axis(figure.axes[0], "x")
    return figure


@styled
def cost_curves(table: pd.DataFrame, overlap: float) -> Figure:
    """Overlap with each reference (95 % intervals) against the cost in forward passes: a row of panels a reference, a
    column a kind of pictures.

    Columns pictures, estimator, probes, forwards, and of each of `OVERLAPS` also …_low and …_high. The estimators with
    several rows are curves, each point with its number of probes. Grey line: the overlap to reach.
    """
    ends = {"value": "", "low": "_low", "high": "_high"}
    rows = pd.concat(
        [
            table.assign(reference=name, **{column: table[stem + end] for column, end in ends.items()})
            for stem, name in OVERLAPS.items()
        ]
    )
    layout = {"row": "reference", "column": "pictures", "xlabel": "cost in forward passes", "whiskers": True}
    figure = bands(rows, "forwards", "estimator", shares=(), at=overlap, **layout)
    several = rows[rows.groupby(["reference", "pictures", "estimator"])["probes"].transform("size") > 1]
    panels = product(OVERLAPS.values(), table["pictures"].unique())
    for axis, (reference, pictures) in zip(figure.axes, panels, strict=True):
        colours = {line.get_label(): line.get_color() for line in axis.lines}
        here = (several["reference"] == reference) & (several["pictures"] == pictures)
        for row in several[here].itertuples():
            place = {"xytext": (2, -7), "textcoords": "offset points", "fontsize": 5}
            axis.annotate(str(row.probes), (row.forwards, row.value), color=colours[row.estimator], **place)
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
        axis.minorticks_off()
    return figure


def save(figure: Figure, stem) -> None:
    """As PDF and PNG beside one another."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("pdf", "png"):
        write_atomic(stem.with_suffix(f".{kind}"), render(figure, kind))
