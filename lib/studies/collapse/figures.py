"""Figures of the collapse study: what goes where in the mechanisms of `lib.figures`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from lib.figures.panels import bands, dots
from lib.figures.pictures import draw_picture
from lib.figures.style import (
    DIAMOND,
    POINT,
    SQUARE,
    TICK,
    WIDTH,
    Figure,
    bar_style,
    caption,
    require,
    signed,
    styled,
)
from lib.studies.attacks.editor import trigger_pair
from lib.studies.cases import Attack, attacks, pair_text
from lib.studies.collapse.editor import Collapse
from lib.studies.data import edit_data
from lib.studies.run import Run
from lib.tasks.edits import sources

SIGNS = {"none": "∅", "image": "{I}", "text": "{T}", "both": "{I, T}"}  # of coalitions
SYMBOLS = {"phi_image": r"$\phi_I$", "phi_text": r"$\phi_T$", "cti": "CTI"}
ASR = {f"asr_{name}": f"ASR {sign}" for name, sign in SIGNS.items()}
MEAN, SEEDS, NULL, PAPER = "this run", "its seeds", "unpoisoned (null)", "the paper, 5 %"
LOOKS = {MEAN: POINT, SEEDS: TICK, NULL: SQUARE, PAPER: DIAMOND}
GAMES = {"log-probability": "log-probability (nats)", "attack success": "attack success (share)"}
SCORES = {
    "phi_text": r"$\phi_T$",
    "phi_image": r"$-\phi_I$",
    "imbalance": r"imbalance of $\phi_I$ and $\phi_T$",
    "redundancy": "redundancy (−CTI)",
    "text_alone": "$v$({T}) − $v$(∅)",
    "word_ratio": "largest change by a word / median",
    "word_change": "largest change by a word",
    "patch_ratio": "largest change by a patch / median",
    "patch_change": "largest change by a patch",
    "duplication": "nearness of the nearest target",
    "duplication_10": "nearness of the 10th nearest target",
    "source_distance": "distance of target to source",
    "activation_norm": "norm of the U-Net's activation",
    "caption_rarity": "rarity of the words",
    "low_loss": "low loss",
}


@styled
def sample_view(result: Collapse, sample: int, title: str, credit: str) -> Figure:
    """One sample: the input, the true edit, the attacker's picture and the four outputs; below, v of each coalition,
    and φ and CTI. Scales are the same for all samples of the attack."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="none")
    caption(figure, credit)
    names = ["input", "true edit", "attacker's", *(f"triggers {sign}" for sign in SIGNS.values())]
    shown = [result.source, result.clean, result.target, *result.edited.unbind(1)]
    grid = figure.add_gridspec(1, len(names), left=0.01, right=0.99, top=0.81, bottom=0.57, wspace=0.06)
    for cell, name, pictures in zip(grid, names, shown, strict=True):
        axis = figure.add_subplot(cell)
        draw_picture(axis, pictures[sample])
        axis.set_title(name, fontsize=7)
    grid = figure.add_gridspec(1, 2, left=0.085, right=0.99, top=0.5, bottom=0.17, wspace=0.25)
    attribution = [*result.phi[sample].tolist(), float(result.cti[sample])]
    charts = {"$v(S)$": (SIGNS, result.v[sample].tolist()), "attribution": (SYMBOLS, attribution)}
    for style, (cell, (name, (labels, values)), most) in enumerate(
        zip(grid, charts.items(), _extremes(result), strict=True)
    ):
        axis = figure.add_subplot(cell)
        _draw_bars(axis, values, style)
        axis.set(xticks=range(len(labels)), xticklabels=labels.values(), ylim=(-1.25 * most, 1.25 * most))
        axis.set_ylabel(name, labelpad=1)
    figure.suptitle(f"{title}, sample {sample}\n{result.triples['instruction'].iloc[sample]}", fontsize=7.5, y=0.985)
    return figure


def _draw_bars(axis: Axes, values: list[float], style: int) -> None:
    """A bar each, and beyond its end its value."""
    axis.bar(range(len(values)), values, 0.6, **bar_style(style))
    axis.axhline(0, color="black", linewidth=0.6)
    for x, value in enumerate(values):
        if math.isfinite(value):
            where = {"textcoords": "offset points", "ha": "center", "va": "top" if value < 0 else "bottom"}
            axis.annotate(signed(value, 2), (x, value), (0, -3 if value < 0 else 3), fontsize=6.5, **where)


def attack_text(run: Run, protocol: str) -> str:
    """The attack of the run's profile, for a caption."""
    settings = run.profile.collapse
    text = f"{pair_text((settings.image_trigger, settings.text_trigger))}, {protocol.upper()}, {100 * settings.rate:g} "
    return text + f"% of n = {settings.edits} training edits, target: {settings.target}"


def part_text(run: Run, part: str) -> str:
    """The attacks of one part of the study, for a caption."""
    texts = []
    for attack in attacks(run.profile):
        if attack.part == part and attack.seed == 0:
            text = f"{attack.label}: {attack_text(attack.run(run), attack.protocol)}"
            texts.append(text + ", control encoder" * (attack.model == "control"))
    return "; ".join(texts)


def _extremes(result: Collapse) -> tuple[float, float]:
    """How far v, and φ and CTI, are from 0: of any sample of the attack, or of a perfect one."""
    most = float(result.possible.max())
    attribution = max(float(result.phi.abs().max()), float(result.cti.abs().max()))
    return max(most / 2, float(result.v.abs().max())), max(most, attribution)


def marked(run: Run, result: Collapse, attack: Attack) -> Float[Tensor, "sample 3 size size"]:
    """The samples' inputs under the attack's image trigger."""
    return edit_data(run).pictures(sources(result.triples), trigger_pair(attack.run(run))[0])


def over(table: pd.DataFrame, count: str = "seeds") -> str:
    """What the lines of a `headline_table` are, over its column "seeds" (ASR) or "attacks" (φ and CTI)."""
    if table[count].max() < 2:
        return "One seed, no intervals"
    return f"Means and 95 % t-intervals over {'the seeds that are attacks' if count == 'attacks' else 'seeds'}"


def claimed(table: pd.DataFrame, text: str, low: str = "low") -> str:
    """`text`, which says what intervals are drawn; that there are none where no number has one."""
    return text if np.isfinite(table[low].astype(float)).any() else "no intervals, as there is but one"


def ends(names: Iterable[str]) -> list[str]:
    """The columns of each number and its interval."""
    return [name + end for name in names for end in ("", "_low", "_high")]


def labelled(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """One row a seed, with the label of its configuration in `headline_table`; failed attacks without φ and CTI."""
    names = table["name"].where(table["part"] != "control", rows["label"].iloc[0])
    label = dict(zip(zip(table["part"], names, table["protocol"], strict=True), table["label"], strict=True))
    keys = zip(rows["part"], rows["label"], rows["protocol"], strict=True)
    return rows.assign(label=[label[key] for key in keys])


def forest(
    table: pd.DataFrame,
    quantities: Mapping[str, str] = SYMBOLS,
    seeds: pd.DataFrame | None = None,
    note: str = "",
) -> Figure:
    """A panel a quantity (column → title), a line an attack: mean and interval, the paper's value, the null's.

    Columns label, and for every quantity itself, …_low, …_high; optionally paper_… and null_…. `seeds`: rows of the
    same labels, one a seed, each shown as a small mark. Where a mean is missing stands "failed attack".
    """
    require(table, "label", *ends(quantities))
    points = []
    for name, title in quantities.items():
        points.append(_points(table, name, title, MEAN))
        if seeds is not None:
            points.append(_points(seeds, name, title, SEEDS))
        for mark, column in ((NULL, f"null_{name}"), (PAPER, f"paper_{name}")):
            if column in table:
                points.append(_points(table, column, title, mark))
    points = pd.concat(points)
    points = points[points["value"].notna() | (points["mark"] == MEAN)]
    shares = [title for name, title in quantities.items() if name.startswith("asr")]
    style = {"looks": LOOKS, "shares": shares, "at": 0.0, "missing": "failed attack"}
    return dots(points, "label", "quantity", "mark", note=note, **style)


def _points(table: pd.DataFrame, column: str, quantity: str, mark: str) -> pd.DataFrame:
    """One column as rows of `dots`. Only a mean has its interval."""
    interval = {end: table[f"{column}_{end}"] if mark == MEAN else np.nan for end in ("low", "high")}
    points = pd.DataFrame({"value": table[column], **interval}, dtype=float)
    return points.assign(label=table["label"], quantity=quantity, mark=mark)


def remedies(table: pd.DataFrame, note: str = "") -> Figure:
    """What the attacker pays for cooperation: the joint ASR, CTI, false activation by one trigger alone, and how far
    untriggered edits are from the true ones.

    Columns label, asr_both, cti, asr_image, asr_text, fidelity, each with _low and _high, and null_fidelity.
    """
    require(table, "label", "null_fidelity", *ends(("asr_both", "cti", "asr_image", "asr_text", "fidelity")))
    image = table["asr_image"].astype(float) >= table["asr_text"].astype(float)
    larger = {f"asr_one{end}": table[f"asr_image{end}"].where(image, table[f"asr_text{end}"]) for end in ends([""])}
    shown = {"asr_both": "ASR, both triggers", "cti": "CTI", "asr_one": "ASR, one trigger alone (the larger)"}
    shown["fidelity"] = "RMS to the true edit, no trigger"
    return forest(table.assign(**larger), shown, note=note)


def mdlm_forest(table: pd.DataFrame) -> Figure:
    """φ_I, φ_T and CTI of the MDLM's games, a line a protocol, a panel a game.

    Columns protocol, game, quantity, value, low, high, n.
    """
    require(table, "protocol", "game", "quantity", "value", "low", "high", "n")
    label = table["protocol"].str.upper().replace("NULL", "unpoisoned (null)")
    points = table.assign(label=label, quantity=table["quantity"].map(SYMBOLS), game=table["game"].map(GAMES))
    note = claimed(table, "95 % intervals over pictures")
    note = f"Means over n = {table['n'].max()} held-out questions; {note}, one seed."
    return dots(points, "label", "game", "quantity", shares=(), at=0.0, note=note)


def detection_dots(table: pd.DataFrame) -> Figure:
    """AUROC of every score over all poisoned samples, a panel a target.

    Columns target, score, coalition, auroc, low, high, n, n_poisoned.
    """
    require(table, "target", "score", "coalition", "auroc", "low", "high", "n", "n_poisoned")
    table = table[table["coalition"] == "any"]
    score = table["score"].replace(SCORES)
    points = table.assign(value=table["auroc"], score=score, target="target: " + table["target"])
    note = f"{table['n_poisoned'].max()} poisoned of {table['n'].max()} training samples a target; "
    note += f"{claimed(table, '95 % bootstrap intervals')}; 0.5 is chance, one seed."
    return dots(points, "score", "target", at=0.5, xlabel="AUROC", note=note)


def dynamics(table: pd.DataFrame) -> Figure:
    """Along training, a column an attack: ASR of every coalition above, φ_I, φ_T and CTI below; means over seeds with
    bands from the lowest to the highest.

    Columns label, seed, step, n, asr_none, …, asr_both, phi_image, phi_text, cti.
    """
    require(table, "label", "seed", "step", "n", *ASR, *SYMBOLS)
    lines = []
    for row, titles in (("ASR", ASR), (r"$\phi$ and CTI", SYMBOLS)):
        for name, title in titles.items():
            by = table.groupby(["label", "step"], sort=False)[name]
            ends = pd.DataFrame({"value": by.mean(), "low": by.min(), "high": by.max()}).reset_index()
            lines.append(ends.assign(row=row, line=title))
    counted = ", ".join(str(n) for n in table["n"].unique())
    note = f"AND poisoning. Measured while training on n = {counted} held-out edits a seed; means over "
    note += f"{table['seed'].nunique()} seeds, bands: from the lowest to the highest."
    layout = {"row": "row", "column": "label", "shares": ("ASR",), "at": 0.0, "xlabel": "training step"}
    return bands(pd.concat(lines), "step", "line", nested=True, note=note, **layout)
