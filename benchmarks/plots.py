"""Plots of benchmark tables, in the style of the other figures."""

from __future__ import annotations

import pandas as pd

from lib.figures.panels import bands, dots
from lib.figures.style import Figure, log_axis, render, styled
from lib.runtime.store import write_atomic

OVERLAPS = {"overlap": "overlap with the exact score", "occlusion_overlap": "overlap with occlusion"}


@styled
def ratio_dots(table: pd.DataFrame) -> Figure:
    """A benchmark's ratios with quartiles on a logarithmic axis, a row each; columns as of `harness.write`."""
    label = table["case"] + ": " + (table["ours"] + " vs ").replace("ours vs ", "") + table["peer"]
    rows = table.rename(columns={"ratio": "value", "ratio_low": "low", "ratio_high": "high"})
    note = f"Median and quartiles of {table['rounds'].max()} rounds in turn; {measured(table)}. "
    note += "Above 1 ours, or what is named first, is faster."
    figure = dots(rows.assign(label=label), "label", "", shares=(), at=1.0, xlabel="the peer's time / ours", note=note)
    log_axis(figure.axes[0], "x")
    return figure


@styled
def cost_curves(table: pd.DataFrame, overlap: float) -> Figure:
    """Overlap with each reference (95 % intervals) against the cost in forward passes: a row of panels a reference, a
    column a kind of pictures.

    Columns pictures, estimator, probes, forwards, and of each of `OVERLAPS` also …_low and …_high. The estimators with
    several rows are curves, their numbers of probes in the key. Grey line: the overlap to reach.
    """
    probes = table.groupby("estimator")["probes"].agg(lambda n: ", ".join(map(str, sorted(set(n)))))
    names = {name: f"{name} ({n} probes)" if "," in n else name for name, n in probes.items()}
    ends = {"value": "", "low": "_low", "high": "_high"}
    table = table.assign(estimator=table["estimator"].map(names))
    rows = pd.concat(
        [
            table.assign(reference=name, **{column: table[stem + end] for column, end in ends.items()})
            for stem, name in OVERLAPS.items()
        ]
    )
    layout = {"row": "reference", "column": "pictures", "xlabel": "cost in forward passes", "whiskers": True}
    note = f"Probes of a curve: from left to right. Lines: 95 % intervals over n = {table['n'].max()} pictures; grey: "
    note += f"{overlap:g}; {measured(table)}."
    figure = bands(rows, "forwards", "estimator", shares=(), at=overlap, note=note, **layout)
    for axis in figure.axes:
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
        axis.minorticks_off()
    return figure


def measured(table: pd.DataFrame) -> str:
    """On what."""
    threads = int(table["threads"].max())
    return f"{table['device'].iloc[0]}, {threads} thread{'s' * (threads > 1)}"


def save(figure: Figure, stem) -> None:
    """As PDF and PNG beside one another."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("pdf", "png"):
        write_atomic(stem.with_suffix(f".{kind}"), render(figure, kind))
