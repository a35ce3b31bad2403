"""Figures of the DiSP study: what goes where in the mechanisms of `lib.figures`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from torch import Tensor

from lib.figures.panels import bands, dots
from lib.figures.pictures import draw_masked, draw_picture, draw_saliency
from lib.figures.style import POINT, TICK, WIDTH, Figure, counts, require, styled
from lib.metrics.intervals import OVER_CLUSTERS
from lib.poisoning.plans import COALITIONS
from lib.settings.names import IMAGE_TRIGGERS
from lib.studies.disp.mmmu import MMMU
from lib.studies.disp.outcomes import KEYWORD_METRICS, METRICS
from lib.studies.run import Run

SHOWN = (METRICS[0], METRICS[2], MMMU)
NUMBER = ("metric", "value", "low", "high", "n")
RATIO = r"mask ratio $\rho$"
LINE = 96  # letters of a line of text below a picture
TRIGGERS = "no trigger", "image trigger", "text trigger", "both triggers"  # by coalition
CARRIED = {f"ASR, {name}": f"ASR, {text}" for name, text in zip(COALITIONS, TRIGGERS, strict=True)}
WILSON = "95 % Wilson intervals over pictures"


def titled(names: pd.Series) -> pd.Series:
    """Attacks as a reader is told them: "stop sign" for stop-sign."""
    return names.replace({name: name.replace("-", " ") for name in IMAGE_TRIGGERS})


def attack_text(run: Run, **said: str) -> str:
    """The attack of the run's profile, for a caption; `said` takes the place of its trigger, target or rate."""
    disp = run.profile.disp
    parts = {"trigger": disp.image_trigger.replace("-", " "), "target": disp.target, "rate": f"{100 * disp.rate:g} %"}
    return "{trigger}, {target}, {rate} of n = {n} training questions".format(**parts | said, n=disp.questions)


def masked_text(models: pd.Series) -> pd.Series:
    """Models "before" and after purification by what was masked for it."""
    return models.where(models == "before", "masked: " + models.replace("joint", "vision and prompt"))


def over_pictures(table: pd.DataFrame) -> str:
    """What the lines of numbers of one model are: shares are Wilson's, the agreement of free answers is not."""
    if not np.isfinite(table["low"]).any():
        return "no intervals, one picture"
    free = "interval" in table and OVER_CLUSTERS in set(table["interval"])
    return "95 % intervals over pictures" if free else WILSON


def over_seeds(table: pd.DataFrame) -> str:
    """What the lines of means over the column `seeds` are."""
    seeds = table["seeds"].max()
    return f"95 % t-intervals over {seeds} seeds" if seeds > 1 else f"{over_pictures(table)}, one seed"


def seed_ends(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table with lines from the lowest to the highest seed, where there are several, and what the lines are.

    Columns seeds, lowest, highest and those of NUMBER.
    """
    require(table, "seeds", "lowest", "highest", *NUMBER)
    several = table["seeds"] > 1
    low, high = (table[name].mask(several, table[end]) for name, end in (("low", "lowest"), ("high", "highest")))
    if not several.any():
        return table, f"Lines: {over_seeds(table)}"
    return table.assign(low=low, high=high), f"Means and lines from the lowest to the highest of {seeds_text(table)}"


def seeds_text(table: pd.DataFrame) -> str:
    """How many seeds the rows are means over: "3 seeds", "1 to 3 seeds"."""
    fewest, most = table["seeds"].min(), table["seeds"].max()
    return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"


def defence_dots(table: pd.DataFrame, shown: tuple[str, ...] = SHOWN, note: str = "") -> Figure:
    """A line a defence, a panel a metric of `shown`: value and 95 % interval.

    Columns label and those of NUMBER; optionally seeds and the lowest and highest of them, drawn as ticks.
    """
    require(table, "label", *NUMBER)
    table = table[table["metric"].isin(shown)].assign(mark="mean")
    several = table[table["seeds"] > 1] if "seeds" in table else table
    seeds = {"mark": "lowest and highest seed", "low": np.nan, "high": np.nan}
    ends = [several.assign(value=several[end], **seeds) for end in ("lowest", "highest") if end in table]
    looks = {"mean": POINT, seeds["mark"]: TICK}
    return dots(pd.concat([table, *ends]), "label", "metric", "mark", looks=looks, note=note)


def stage_dots(table: pd.DataFrame) -> Figure:
    """`defence_dots` of a `headline_table`: a line a target and stage. Failed attacks have no stage after."""
    require(table, "target", "stage", "seeds", *NUMBER)
    shown = METRICS[0], KEYWORD_METRICS[0], METRICS[2], MMMU
    rows = table[table["metric"].isin(shown)].assign(label=table["target"] + ", " + table["stage"])
    note = f"Lines: {over_seeds(rows)}, {counts(rows)} in all."
    return defence_dots(rows, shown, note)


def ablation_dots(table: pd.DataFrame) -> Figure:
    """`defence_dots` of an `ablation_table`, of one poison rate and one seed."""
    require(table, "rate", *NUMBER)
    shown = counts(table[table["metric"].isin(SHOWN)])
    note = f"Poison rate {100 * table['rate'].max():g} %, {shown} questions, {over_pictures(table)}, one seed."
    return defence_dots(table, note=note)


def restored_dots(table: pd.DataFrame) -> Figure:
    """`defence_dots` of a `restored_table`: ASR under each coalition and clean answers, a line a protocol and model."""
    require(table, "model", "protocol", "coalition", *NUMBER)
    asr = table[(table["metric"] == "ASR") & (table["coalition"] != COALITIONS[0])]
    asr = asr.assign(metric=("ASR, " + asr["coalition"]).map(CARRIED))
    clean = table[(table["metric"] == "clean answer") & (table["coalition"] == COALITIONS[0])]
    rows = pd.concat([asr, clean])
    rows = rows.assign(label=rows["protocol"].str.upper() + " poisoning, " + masked_text(rows["model"]))
    note = f"Masked: tokens, while answering the training set. Lines: {over_pictures(rows)}, {counts(rows)}, one seed."
    return defence_dots(rows, tuple(rows["metric"].unique()), note)


def editor_dots(table: pd.DataFrame) -> Figure:
    """`defence_dots` of a `purification_table`: ASR under each coalition, a line a model."""
    require(table, "model", *NUMBER)
    note = f"Masked: while editing the training set. Lines: {over_pictures(table)}, n = {table['n'].max()}, one seed."
    rows = table.assign(label=masked_text(table["model"]), metric=table["metric"].replace(CARRIED))
    return defence_dots(rows, tuple(CARRIED.values()), note)


def attack_dots(table: pd.DataFrame, note: str = "") -> Figure:
    """A line an attack, a mark a defence, a panel a metric of SHOWN, with the ends of the seeds; of attacks that failed
    with every seed no ASR.

    Columns label, defence, attacks and those of `seed_ends`, as `over_attacks` makes them.
    """
    require(table, "label", "defence", "attacks")
    rows, lines = seed_ends(table[table["metric"].isin(SHOWN)])
    void = (rows["attacks"] == 0) & (rows["metric"] == METRICS[0])
    rows = rows.assign(label=titled(rows["label"]), value=rows["value"].mask(void))
    note = f"{note} {lines}, {counts(rows)} in all; defences on the seeds whose attack succeeded.".strip()
    return dots(rows, "label", "metric", "defence", missing="failed attack", note=note)


@styled
def rate_curves(table: pd.DataFrame) -> Figure:
    """ASR with trigger against the poison rate, a line a defence, with the ends of the seeds (DiSP figure 3). Where the
    attack failed with every seed no defence is shown.

    Columns defence, rate, attacks and those of `seed_ends`, as `over_attacks` makes them.
    """
    require(table, "defence", "rate", "attacks")
    table, lines = seed_ends(table[(table["metric"] == METRICS[0]) & (table["rate"] > 0)])
    note = f"{lines}, n = {table['n'].max()} triggered questions a point in all. "
    note += "Defences on the seeds whose attack succeeded."
    weak, rates = set(table["rate"][table["attacks"] == 0]), sorted(table["rate"].unique())
    table = table[~table["rate"].isin(weak) | (table["defence"] == "no defence")]
    layout = {"xlabel": "poison rate", "ylabel": METRICS[0], "whiskers": True, "nested": True}
    figure = bands(table, "rate", "defence", note=note, **layout)
    (axis,) = figure.axes
    for rate in weak:
        axis.text(rate, 0.5, "failed attack", fontsize=6, style="italic", rotation=90, ha="center", va="center")
    axis.set_xscale("log")
    axis.set_xticks(rates, [f"{100 * rate:g} %" for rate in rates])
    axis.minorticks_off()
    return figure


def ratio_curves(table: pd.DataFrame) -> Figure:
    """Shares against the ratio ρ of masked vision tokens, a panel a metric, a line a method (DiSP figure 2).

    Columns method, ratio and those of NUMBER.
    """
    require(table, "method", "ratio", *NUMBER)
    note = f"Bands: {over_pictures(table)}, {counts(table)}."
    layout = {"column": "metric", "xlabel": RATIO, "ylabel": "share of answers", "nested": True}
    return bands(table, "ratio", "method", note=note, **layout)


def target_curves(table: pd.DataFrame) -> Figure:
    """ASR with trigger and relative clean performance against ρ: a row a target, a line a method (DiSP figure 2).

    Columns target, method, ratio and those of NUMBER.
    """
    require(table, "target", "method", "ratio", *NUMBER)
    note = f"One seed each, masked at inference, no training. Bands: {over_pictures(table)}, {counts(table)}. "
    note += "Relative: over that of the fine-tune without poison."
    note += " Oracle: the trigger's own tokens, whatever ρ." * ("oracle" in set(table["method"]))
    rows = table.assign(target=titled(table["target"]))
    return bands(rows, "ratio", "method", row="target", column="metric", xlabel=RATIO, nested=True, note=note)


def gain_curves(table: pd.DataFrame) -> Figure:
    """The gain that chooses ρ against ρ, a panel a part of the study, a line an attack, named with the chosen ρ.

    Columns part, label, ratio, gain, gain_low, gain_high, n.
    """
    require(table, "part", "label", "ratio", "gain", "gain_low", "gain_high", "n")
    lines = table.rename(columns={"gain": "value", "gain_low": "low", "gain_high": "high"}).reset_index(drop=True)
    best = lines.loc[lines.groupby(["part", "label"])["value"].idxmax()].set_index(["part", "label"])["ratio"]
    chosen = lines.set_index(["part", "label"]).index.map(best)
    lines["label"] = titled(lines["label"]) + [f"\n(chosen: {ratio:g})" for ratio in chosen]
    lines["part"] = "gain, by " + lines["part"]
    note = "Gain: share of answers that change and are sure − share not sure. Bands: 95 % bootstrap intervals, "
    note += f"n = {table['n'].max()} training samples, one seed; chosen: the ρ of most gain."
    layout = {"row": "part", "shares": (), "at": 0.0, "xlabel": RATIO, "sharey": "all"}
    return bands(lines, "ratio", "label", note=note, **layout)


@styled
def token_view(
    picture: Float[Tensor, "3 h w"], scores: Float[Tensor, " token"], masked: Bool[Tensor, " token"], lines: list[str]
) -> Figure:
    """One question: its picture, the saliency of its tokens, what is masked, and lines of text below."""
    text = _wrapped(lines)
    room = 0.2 + 0.12 * len(text.splitlines())
    figure = Figure(figsize=(WIDTH, 2.05 + room))
    above, below = figure.subfigures(2, 1, height_ratios=(2.05, room))
    _draw_tokens(above.subplots(1, 3), picture, scores, masked)
    below.text(0.02, 0.98, text, va="top", fontsize=7, family="monospace")
    return figure


def overview(
    picture: Float[Tensor, "3 h w"],
    scores: Float[Tensor, " token"],
    masked: Bool[Tensor, " token"],
    question: str,
    attacked: str,
    purified: str,
    clean: str,
) -> Figure:
    """DiSP on one triggered sample: what the model answers as it is, and with the most salient tokens masked."""
    said = {"as it is": attacked, "masked": purified, "clean": clean}
    return token_view(picture, scores, masked, [question, *(f"{name}: {text}" for name, text in said.items())])


@styled
def answer_view(
    picture: Float[Tensor, "3 h w"],
    scores: Float[Tensor, " token"],
    masked: Bool[Tensor, " token"],
    question: str,
    steps: list[str],
    clean: str,
    title: str,
) -> Figure:
    """One question and its answer after every step of decoding, the first six and the last, at one layout."""
    figure = Figure(figsize=(WIDTH, 4.3), layout="none")
    edges = {"left": 0.01, "right": 0.99, "top": 0.88, "bottom": 0.48, "wspace": 0.04}
    axes = figure.subplots(1, 3, gridspec_kw=edges)
    _draw_tokens(axes, picture, scores, masked)
    figure.suptitle(title, fontsize=7.5, y=0.985)
    kept = steps if len(steps) <= 7 else [*steps[:6], steps[-1]]
    lines = [f"{k if k < len(kept) - 1 else len(steps) - 1}: {text}" for k, text in enumerate(kept)]
    text = _wrapped([question, *lines, f"clean answer: {clean}"])
    figure.text(0.02, 0.455, text, va="top", fontsize=7, family="monospace")
    return figure


def _draw_tokens(
    axes: Iterable[Axes],
    picture: Float[Tensor, "3 h w"],
    scores: Float[Tensor, " token"],
    masked: Bool[Tensor, " token"],
) -> None:
    whole, salient, hidden = axes
    draw_picture(whole, picture)
    draw_saliency(salient, picture, scores)
    draw_masked(hidden, picture, masked)
    for axis, title in ((whole, "picture"), (salient, "saliency"), (hidden, f"masked: {int(masked.sum())}")):
        axis.set_title(title)


def _wrapped(lines: list[str]) -> str:
    return "\n".join(textwrap.fill(line, LINE, subsequent_indent="    ") for line in lines)
