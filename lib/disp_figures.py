"""Figures of the DiSP study in full, in the style of `plotting`."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.lines import Line2D
from torch import Tensor

from lib.mmmu import MMMU
from lib.plotting import (
    PALETTE,
    WIDTH,
    Figure,
    caption,
    counts,
    draw_masked,
    draw_picture,
    draw_saliency,
    legend,
    line_style,
    require,
    share_axis,
    styled,
)
from lib.poisoning import COALITIONS
from lib.purification import METRICS

SHOWN = (METRICS[0], METRICS[2], MMMU)


@styled
def defence_dots(table: pd.DataFrame, metrics: tuple[str, ...] | None = None) -> Figure:
    """A line a defence, a panel a metric: value and 95 % interval. Panels are those of SHOWN that the table has.

    Columns label, metric, value, low, high, n; optionally lowest and highest, of seeds, drawn as ticks.
    """
    require(table, "label", "metric", "value", "low", "high", "n")
    metrics = metrics or tuple(name for name in SHOWN if name in set(table["metric"]))
    labels = list(table["label"].unique())
    place = np.arange(len(labels))[::-1]
    figure = Figure(figsize=(WIDTH, 0.19 * len(labels) + 1.0))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for style, (axis, metric) in enumerate(zip(axes, metrics, strict=True)):
        rows = table[table["metric"] == metric].set_index("label").loc[labels]
        reach = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
        look = line_style(style)
        axis.errorbar(
            rows["value"], place, xerr=reach, fmt=look["marker"], color=look["color"], markersize=3, capsize=1.5
        )
        if "lowest" in rows:
            for end in ("lowest", "highest"):
                axis.plot(rows[end], place, linestyle="none", marker="|", color="0.3", markersize=6)
        axis.set(title=metric, xlim=(-0.04, 1.04))
        axis.grid(axis="x", color="0.9", linewidth=0.5)
    axes[0].set_yticks(place, [textwrap.shorten(label, 64) for label in labels], fontsize=6.5)
    return figure


@styled
def attack_dots(table: pd.DataFrame) -> Figure:
    """A line an attack, a mark a defence, a panel a metric of SHOWN that the table has: value and 95 % interval.

    Columns label, defence, metric, value, low, high, n.
    """
    require(table, "label", "defence", "metric", "value", "low", "high", "n")
    labels, defences = table["label"].unique(), table["defence"].unique()
    metrics = [name for name in SHOWN if name in set(table["metric"])]
    apart = 0.7 / len(defences)
    figure = Figure(figsize=(WIDTH, 0.1 * (len(defences) + 1) * len(labels) + 1.0))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for style, defence in enumerate(defences):
            rows = table[(table["metric"] == metric) & (table["defence"] == defence)].set_index("label")
            here = np.flatnonzero(np.isin(labels, rows.index))
            rows = rows.loc[labels[here]]
            reach = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
            place = len(labels) - 1 - here + apart * ((len(defences) - 1) / 2 - style)
            axis.errorbar(
                rows["value"], place, xerr=reach, capsize=1.5, elinewidth=0.8, **_mark(style), clip_on=False
            )
        for k in range(1, len(labels)):
            axis.axhline(k - 0.5, color="0.9", linewidth=0.5)
        axis.set(title=metric, xlim=(-0.04, 1.04), ylim=(-0.6, len(labels) - 0.4))
        axis.grid(axis="x", color="0.9", linewidth=0.5)
    axes[0].set_yticks(range(len(labels))[::-1], labels, fontsize=6.5)
    legend(figure, [Line2D([], [], **_mark(style)) for style in range(len(defences))], list(defences))
    return figure


def _mark(style: int) -> dict[str, object]:
    return line_style(style) | {"linestyle": "none", "markersize": 3.5}


def restored_dots(table: pd.DataFrame) -> Figure:
    """`defence_dots` of a `restored_table`: ASR under each coalition and clean answers, a line a protocol and model."""
    require(table, "model", "protocol", "coalition", "metric", "value", "low", "high", "n")
    asr = (table["metric"] == "ASR") & (table["coalition"] != COALITIONS[0])
    right = (table["metric"] == "clean answer") & (table["coalition"] == COALITIONS[0])
    rows = table[asr | right]
    label = rows["protocol"].str.upper() + ", " + rows["model"]
    metric = rows["metric"].where(rows["metric"] != "ASR", "ASR, " + rows["coalition"])
    shown = (*(f"ASR, {name}" for name in COALITIONS[1:]), "clean answer")
    figure = defence_dots(rows.assign(label=label, metric=metric), shown)
    text = "Tokens masked while answering the training set: by line. 95 % Wilson intervals over pictures, "
    caption(figure, f"{text}{counts(rows)}.")
    return figure


def ablation_dots(table: pd.DataFrame) -> Figure:
    """`defence_dots` of an `ablation_table`, of one poison rate and one seed."""
    figure = defence_dots(table)
    shown = counts(table[table["metric"].isin(SHOWN)])
    rate = f"Poison rate {100 * table['rate'].max():g} %"
    caption(figure, f"{rate}, {shown} questions, 95 % Wilson intervals over pictures, one seed.")
    return figure


def editor_dots(table: pd.DataFrame) -> Figure:
    """`defence_dots` of a `purification_table`: ASR under each coalition, a line a model."""
    shown = tuple(f"ASR, {name}" for name in COALITIONS)
    figure = defence_dots(table.assign(label=table["model"]), shown)
    text = "Masked while editing the training set: by line. 95 % Wilson intervals over pictures"
    caption(figure, f"{text}, n = {table['n'].max()}.")
    return figure


@styled
def rate_curves(table: pd.DataFrame) -> Figure:
    """ASR with trigger against the poison rate, a line a defence, with its 95 % intervals (DiSP figure 3).

    Columns defence, rate, metric, value, low, high, n.
    """
    require(table, "defence", "rate", "metric", "value", "low", "high", "n")
    table = table[(table["metric"] == METRICS[0]) & (table["rate"] > 0)]
    figure = Figure(figsize=(WIDTH, 2.8))
    axis = figure.subplots()
    names = table["defence"].unique()
    for style, name in enumerate(names):
        rows = table[table["defence"] == name].sort_values("rate")
        reach = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
        axis.errorbar(rows["rate"], rows["value"], yerr=reach, elinewidth=0.6, capsize=1.5, **line_style(style))
    rates = sorted(table["rate"].unique())
    axis.set_xscale("log")
    axis.set_xticks(rates, [f"{100 * rate:g} %" for rate in rates])
    axis.minorticks_off()
    axis.set(xlabel="poison rate", ylabel=METRICS[0])
    share_axis(axis)
    legend(figure, [Line2D([], [], **line_style(style)) for style in range(len(names))], list(names))
    caption(figure, f"Lines: 95 % Wilson intervals over pictures, n = {table['n'].max()} triggered questions a point.")
    return figure


@styled
def target_curves(table: pd.DataFrame) -> Figure:
    """ASR with trigger and relative clean accuracy against ρ: a row a target, a line a method (DiSP figure 2).

    Columns target, method, ratio, metric, value, low, high, n.
    """
    require(table, "target", "method", "ratio", "metric", "value", "low", "high", "n")
    targets, metrics, methods = (table[column].unique() for column in ("target", "metric", "method"))
    figure = Figure(figsize=(WIDTH, 1.5 * len(targets) + 0.9))
    axes = figure.subplots(len(targets), len(metrics), sharex=True, sharey=True, squeeze=False)
    for line, target in zip(axes, targets, strict=True):
        for axis, metric in zip(line, metrics, strict=True):
            for style, method in enumerate(methods):
                rows = table[(table["target"] == target) & (table["metric"] == metric) & (table["method"] == method)]
                rows = rows.sort_values("ratio")
                axis.plot(rows["ratio"], rows["value"], **line_style(style))
                band = {"color": PALETTE[style % len(PALETTE)], "alpha": 0.15, "linewidth": 0}
                axis.fill_between(rows["ratio"], rows["low"], rows["high"], **band)
            share_axis(axis)
        line[0].set_ylabel(textwrap.fill(target, 16))
    for axis, metric in zip(axes[0], metrics, strict=True):
        axis.set_title(metric)
    for axis in axes[-1]:
        axis.set_xlabel(r"mask ratio $\rho$")
    legend(figure, [Line2D([], [], **line_style(style)) for style in range(len(methods))], list(methods))
    text = f"Masked at inference, no training. Bands: 95 % Wilson intervals over pictures, {counts(table)}. "
    text += "Relative accuracy: over that of the fine-tune without poison."
    caption(figure, text + " Oracle: the trigger's own tokens, whatever ρ." * ("oracle" in methods))
    return figure


@styled
def gain_curves(table: pd.DataFrame) -> Figure:
    """The gain that chooses ρ against ρ, a panel a part of the study, a line an attack; the chosen one is ringed.

    Columns part, label, ratio, gain, gain_low, gain_high, n.
    """
    require(table, "part", "label", "ratio", "gain", "gain_low", "gain_high", "n")
    parts = table["part"].unique()
    figure = Figure(figsize=(WIDTH, 1.7 * len(parts) + 0.7))
    axes = figure.subplots(len(parts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, part in zip(axes, parts, strict=True):
        own = table[table["part"] == part]
        for style, label in enumerate(own["label"].unique()):
            rows = own[own["label"] == label].sort_values("ratio")
            axis.plot(rows["ratio"], rows["gain"], label=label, **line_style(style))
            band = {"color": PALETTE[style % len(PALETTE)], "alpha": 0.15, "linewidth": 0}
            axis.fill_between(rows["ratio"], rows["gain_low"], rows["gain_high"], **band)
            best = rows.loc[rows["gain"].idxmax()]
            axis.plot(best["ratio"], best["gain"], marker="o", markersize=9, fillstyle="none", color="0.2")
        axis.axhline(0, color="0.7", linewidth=0.6)
        axis.set_ylabel("sure changes\n− unsure")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=part, alignment="left", fontsize=6.5)
    axes[-1].set_xlabel(r"mask ratio $\rho$")
    caption(figure, f"Bands: 95 % bootstrap intervals, n = {table['n'].max()} training samples; ringed: chosen.")
    return figure


@styled
def answer_view(
    picture: Float[Tensor, "3 h w"],
    scores: Float[Tensor, " token"],
    masked: Bool[Tensor, " token"],
    question: str,
    steps: list[str],
    clean: str,
) -> Figure:
    """One question: its picture, the saliency of its tokens, what is masked, and the answer after every step."""
    figure = Figure(figsize=(WIDTH, 3.3))
    above, below = figure.subfigures(2, 1, height_ratios=(1.7, 1))
    axes = above.subplots(1, 3)
    draw_picture(axes[0], picture)
    draw_saliency(axes[1], picture, scores)
    draw_masked(axes[2], picture, masked)
    for axis, title in zip(axes, ("picture", "saliency", f"masked: {int(masked.sum())}"), strict=True):
        axis.set_title(title)
    kept = steps if len(steps) <= 7 else [*steps[:6], steps[-1]]
    lines = [f"{k if k < len(kept) - 1 else len(steps) - 1}: {text}" for k, text in enumerate(kept)]
    text = "\n".join([question, *lines, f"clean answer: {clean}"])
    below.text(0.02, 0.98, text, va="top", fontsize=7, family="monospace")
    return figure
