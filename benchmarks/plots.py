"""A figure of every benchmark's table, in the style of the other figures.

    python -m benchmarks.plots                  # all anew from their tables; figures without a table go
    python -m benchmarks.plots ending-cpu       # this one
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pandas as pd

from lib.figures.panels import bands, dots
from lib.figures.style import Figure, caption, log_axis, render, styled
from lib.runtime.store import write_atomic
from lib.settings.paths import ROOT

RESULTS, FIGURES = Path(__file__).parent / "results", ROOT / "figures" / "benchmarks"
OVERLAPS = {"overlap": "overlap with the exact score", "occlusion_overlap": "overlap with occlusion"}
TO_REACH = 0.95  # overlap
NARROW = 3  # ratios less far apart are on a linear axis
# Of tables without ratios: which columns name a row, which is shown, and what it is.
VALUES = {
    "activations": (["activations", "layers"], "gb", "GB beside the weights, by layers"),
    "compositing": (["case", "peer"], "share", "compositing's share of the time of both"),
    "ending": (["pace", "end"], "value", "facts stated rightly (95 % intervals)"),
    "figures": (["case"], "share", "share of all jobs' time"),
    "full_size": (["task"], "seconds", "seconds a batch"),
    "toy_size": (["task"], "seconds", "seconds a batch"),
}


def draw(table: Path, folder: Path) -> None:
    """The figure of a table, with what it was made on, as PDF and PNG."""
    rows, name = pd.read_csv(table), table.stem.rpartition("-")[0]
    figure = figure_of(name, rows)
    caption(figure, made_on(rows))
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("pdf", "png"):
        write_atomic(folder / f"{table.stem}.{kind}", render(figure, kind))


def figure_of(name: str, rows: pd.DataFrame) -> Figure:
    """By the benchmark's name, or of its ratios. Raises ValueError for a table that has none and is not known."""
    if name == "saliency":
        return cost_curves(rows[rows["estimator"] != "random"], TO_REACH)
    if name == "redundancy":
        return kept_curves(rows)
    if name in VALUES:
        return value_dots(rows, *VALUES[name])
    if "ratio" in rows:
        return ratio_dots(rows)
    raise ValueError(f"{name} has no ratios: benchmarks.plots must say what is shown of it")


def made_on(rows: pd.DataFrame) -> str:
    """Device, threads, rounds of what was timed, torch's version."""
    first = rows.iloc[0]
    threads = int(first["threads"])
    parts = [first["device"], f"{threads} thread" + "s" * (threads != 1)]
    if "rounds" in rows:
        parts.append(f"{first['rounds']} rounds")
    return ", ".join([*parts, f"torch {first['torch']}"])


@styled
def value_dots(rows: pd.DataFrame, names: list[str], value: str, title: str) -> Figure:
    """A dot a row, from `low` to `high` where there is an interval."""
    label = rows[names].astype(str).agg(", ".join, axis=1)
    ends = {} if "low" in rows else {"low": float("nan"), "high": float("nan")}
    shown = rows.drop(columns=[name for name in ("value",) if name != value], errors="ignore")
    shown = shown.rename(columns={value: "value"}).assign(label=label, panel=title, **ends)
    return dots(shown, "label", "panel", shares=())


@styled
def kept_curves(rows: pd.DataFrame) -> Figure:
    """Facts stated rightly against the share of vision tokens masked, a line a way of masking, from none on."""
    none = rows[rows["masked"] == "none"]
    ways = [way for way in rows["masked"].unique() if way != "none"]
    lines = pd.concat([part for way in ways for part in (none.assign(masked=way), rows[rows["masked"] == way])])
    return bands(lines, "share", "masked", xlabel="vision tokens masked", ylabel="facts stated rightly")


@styled
def ratio_dots(table: pd.DataFrame) -> Figure:
    """A benchmark's ratios with quartiles, a row each, on a logarithmic axis where they are far apart.

    Columns case, ours, peer, ratio, ratio_low, ratio_high.
    """
    table = table.dropna(subset="ratio")
    label = table["case"] + ": " + table["ours"] + " vs " + table["peer"]
    rows = table.rename(columns={"ratio": "value", "ratio_low": "low", "ratio_high": "high"})
    rows = rows.assign(label=label, panel="peer's time / ours (median, quartiles)")
    figure = dots(rows, "label", "panel", shares=(), at=1.0)
    if table["ratio"].max() > NARROW * table["ratio"].min():
        log_axis(figure.axes[0], "x")
    return figure


@styled
def cost_curves(table: pd.DataFrame, overlap: float) -> Figure:
    """Overlap with each reference (95 % intervals) against the cost in forward passes: a row of panels a reference, a
    column a kind of pictures.

    Columns pictures, estimator, probes, forwards, n, and of each of `OVERLAPS` also …_low and …_high. The estimators
    with several rows are curves, the longest with its numbers of probes. Grey line: the overlap to reach.
    """
    ends = {"value": "", "low": "_low", "high": "_high"}
    rows = pd.concat(
        [
            table.assign(reference=name, **{column: table[stem + end] for column, end in ends.items()})
            for stem, name in OVERLAPS.items()
        ]
    )
    longest = rows[rows["estimator"] == rows["estimator"].mode()[0]]
    note = f"Small numbers: probes of {longest['estimator'].iloc[0]}. Lines: 95 % intervals over n = "
    note += f"{table['n'].max()} pictures."
    layout = {"row": "reference", "column": "pictures", "xlabel": "cost in forward passes", "whiskers": True}
    figure = bands(rows, "forwards", "estimator", shares=(), at=overlap, note=note, **layout)
    panels = product(OVERLAPS.values(), table["pictures"].unique())
    for axis, (reference, pictures) in zip(figure.axes, panels, strict=True):
        colours = {line.get_label(): line.get_color() for line in axis.lines}
        here = (longest["reference"] == reference) & (longest["pictures"] == pictures)
        for row in longest[here].itertuples():
            place = {"xytext": (2, -7), "textcoords": "offset points", "fontsize": 5}
            axis.annotate(str(row.probes), (row.forwards, row.value), color=colours[row.estimator], **place)
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
        axis.minorticks_off()
    return figure


def main(names: list[str]) -> None:
    tables = [RESULTS / f"{name}.csv" for name in names] or sorted(RESULTS.glob("*-*.csv"))
    for table in tables:
        draw(table, FIGURES)
    for figure in [] if names else FIGURES.glob("*.p*"):
        if figure.stem not in {table.stem for table in tables}:
            figure.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
