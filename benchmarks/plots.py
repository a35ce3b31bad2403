"""Plots of benchmark tables, in the style of the other figures."""

from __future__ import annotations

import matplotlib.style
import pandas as pd

from lib.plotting import LINES, MARKERS, PALETTE, STYLE, WIDTH, Figure, render
from lib.store import write_atomic


@matplotlib.style.context(["default", STYLE])
def ratio_dots(table: pd.DataFrame) -> Figure:
    """A benchmark's ratios with quartiles on a logarithmic axis, a row each; columns case, ours, peer, ratio, …"""
    figure = Figure(figsize=(WIDTH, 0.7 + 0.15 * len(table)))
    axis = figure.subplots()
    rows = range(len(table))
    spread = table["ratio"] - table["ratio_low"], table["ratio_high"] - table["ratio"]
    axis.errorbar(table["ratio"], rows, xerr=spread, fmt="o", markersize=3, color=PALETTE[0], linewidth=1)
    axis.axvline(1, color="0.5", linewidth=0.8, linestyle="--")
    labels = [f"{row.case}: {row.ours} vs {row.peer}" for row in table.itertuples()]
    axis.set_yticks(rows, labels, fontsize=5.5)
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.set_xscale("log")
    axis.set_xlabel("peer's time / ours (median, quartiles)")
    axis.grid(axis="x", linewidth=0.3)
    return figure


@matplotlib.style.context(["default", STYLE])
def cost_curves(table: pd.DataFrame, forwards: float, overlap: float) -> Figure:
    """Overlap with the exact score (95 % intervals) against the cost in forward passes, a panel a kind of pictures.

    Columns pictures, estimator, probes, overlap, overlap_low, overlap_high, forwards. The estimators with several
    rows are curves, each point with its number of probes. Dashed lines: the cost and the overlap to reach.
    """
    panels = table.groupby("pictures", sort=False)
    figure = Figure(figsize=(WIDTH, 2.9))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (pictures, panel) in zip(axes, panels, strict=True):
        for k, (estimator, rows) in enumerate(panel.groupby("estimator", sort=False)):
            color, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
            spread = rows["overlap"] - rows["overlap_low"], rows["overlap_high"] - rows["overlap"]
            style = {"color": color, "marker": marker, "markersize": 3, "linewidth": 0.8, "elinewidth": 0.6}
            dash = LINES[k % len(LINES)]
            axis.errorbar(rows["forwards"], rows["overlap"], spread, linestyle=dash, label=estimator, **style)
            for row in rows.itertuples() if len(rows) > 1 else ():
                place = {"xytext": (2, -7), "textcoords": "offset points", "fontsize": 5}
                axis.annotate(str(row.probes), (row.forwards, row.overlap), color=color, **place)
        axis.axvline(forwards, color="0.5", linewidth=0.6, linestyle="--")
        axis.axhline(overlap, color="0.5", linewidth=0.6, linestyle="--")
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 4, 10, 20, 50], [1, 2, 4, 10, 20, 50])
        axis.set_xticks([], minor=True)
        axis.set_title(pictures)
        axis.set_xlabel("cost in forward passes")
    axes[0].set_ylabel("overlap of the top 20 %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def save(figure: Figure, stem) -> None:
    """As PDF and PNG beside one another."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("pdf", "png"):
        write_atomic(stem.with_suffix(f".{kind}"), render(figure, kind))
