"""Plots of benchmark tables, in the style of the other figures."""

from __future__ import annotations

import matplotlib.style
import pandas as pd

from lib.plotting import PALETTE, STYLE, WIDTH, Figure, render
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


def save(figure: Figure, stem) -> None:
    """As PDF and PNG beside one another."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("pdf", "png"):
        write_atomic(stem.with_suffix(f".{kind}"), render(figure, kind))
