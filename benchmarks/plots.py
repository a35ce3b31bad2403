"""Plots of benchmark tables, in the style of the other figures."""

from __future__ import annotations

import pandas as pd

from lib.figures.panels import bands, dots
from lib.figures.style import Figure, log_axis, render, styled
from lib.runtime.store import write_atomic


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
def cost_curves(table: pd.DataFrame, forwards: float, overlap: float) -> Figure:
    """Overlap with the exact score (95 % intervals) against the cost in forward passes, a panel a kind of pictures.

    Columns pictures, estimator, probes, overlap, overlap_low, overlap_high, forwards. The estimators with several
    rows are curves, each point with its number of probes. Grey lines: the cost and the overlap to reach.
    """
    rows = table.rename(columns={"overlap": "value", "overlap_low": "low", "overlap_high": "high"})
    layout = {"xlabel": "cost in forward passes", "ylabel": "overlap of the top 20 %", "whiskers": True}
    figure = bands(rows, "forwards", "estimator", column="pictures", shares=(), at=overlap, **layout)
    several = table[table.groupby(["pictures", "estimator"])["probes"].transform("size") > 1]
    for axis, pictures in zip(figure.axes, table["pictures"].unique(), strict=True):
        axis.axvline(forwards, color="0.7", linewidth=0.6)
        colours = {line.get_label(): line.get_color() for line in axis.lines}
        for row in several[several["pictures"] == pictures].itertuples():
            place = {"xytext": (2, -7), "textcoords": "offset points", "fontsize": 5}
            axis.annotate(str(row.probes), (row.forwards, row.overlap), color=colours[row.estimator], **place)
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 4, 10, 20, 50], [1, 2, 4, 10, 20, 50])
        axis.minorticks_off()
    return figure


def save(figure: Figure, stem) -> None:
    """As PDF and PNG beside one another."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("pdf", "png"):
        write_atomic(stem.with_suffix(f".{kind}"), render(figure, kind))
