"""Figures of the collapse study: what goes where in the mechanisms of `lib.figures`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lib.figures.panels import bands, dots, draw_bars
from lib.figures.pictures import draw_picture
from lib.figures.style import DIAMOND, POINT, SQUARE, TICK, WIDTH, Figure, caption, require, styled
from lib.poisoning.catalogue import image_trigger
from lib.studies.cases import Attack
from lib.studies.collapse.editor import Collapse
from lib.studies.data import edit_data
from lib.studies.run import Run
from lib.tasks.edits import sources

SIGNS = {"none": "∅", "image": "{I}", "text": "{T}", "both": "{I, T}"}  # of coalitions
SYMBOLS = {"phi_image": r"$\phi_I$", "phi_text": r"$\phi_T$", "cti": "CTI"}
ASR = {f"asr_{name}": f"ASR {sign}" for name, sign in SIGNS.items()}
LOOKS = {"mean": POINT, "seeds": TICK, "null": SQUARE, "paper, 5 %": DIAMOND}


@styled
def sample_view(result: Collapse, sample: int, title: str, credit: str) -> Figure:
    """One sample: the input, the true edit and the four outputs; below, v of each coalition, and φ and CTI."""
    figure = Figure(figsize=(WIDTH, 2.7))
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.1))
    names = ["input", "true edit", *(f"triggers {sign}" for sign in SIGNS.values())]
    shown = zip(names, [result.source, result.clean, *result.edited.unbind(1)], strict=True)
    for column, (name, pictures) in enumerate(shown):
        axis = figure.add_subplot(grid[0, column])
        draw_picture(axis, pictures[sample])
        axis.set_title(name, fontsize=7)
    attribution = [*result.phi[sample].tolist(), float(result.cti[sample])]
    charts = {"$v(S)$": (SIGNS, result.v[sample].tolist()), "attribution": (SYMBOLS, attribution)}
    for style, (name, (labels, values)) in enumerate(charts.items()):
        axis = figure.add_subplot(grid[1, 3 * style : 3 * style + 3])
        rows = pd.DataFrame({"value": values, "low": np.nan, "high": np.nan})
        draw_bars(axis, np.arange(len(values)), rows, 0.6, style=style, digits=2)
        axis.set_xticks(range(len(labels)), labels.values())
        axis.set_ylabel(name)
    figure.suptitle(f"{title}: {result.triples['instruction'].iloc[sample]}", fontsize=7.5)
    caption(figure, credit)
    return figure


def marked(run: Run, result: Collapse, attack: Attack) -> Float[Tensor, "sample 3 size size"]:
    """The samples' inputs under the attack's image trigger."""
    trigger = image_trigger(attack.pair[0], attack.settings.get("trigger_size"))
    return edit_data(run).pictures(sources(result.triples), trigger)


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
        points.append(_points(table, name, title, "mean"))
        if seeds is not None:
            points.append(_points(seeds, name, title, "seeds"))
        for mark, column in (("null", f"null_{name}"), ("paper, 5 %", f"paper_{name}")):
            if column in table:
                points.append(_points(table, column, title, mark))
    points = pd.concat(points)
    points = points[points["value"].notna() | (points["mark"] == "mean")]
    shares = [title for name, title in quantities.items() if name.startswith("asr")]
    style = {"looks": LOOKS, "shares": shares, "at": 0.0, "missing": "failed attack"}
    return dots(points, "label", "quantity", "mark", note=note, **style)


def _points(table: pd.DataFrame, column: str, quantity: str, mark: str) -> pd.DataFrame:
    """One column as rows of `dots`. Only a mean has its interval."""
    interval = {end: table[f"{column}_{end}"] if mark == "mean" else np.nan for end in ("low", "high")}
    points = pd.DataFrame({"value": table[column], **interval}, dtype=float)
    return points.assign(label=table["label"], quantity=quantity, mark=mark)


def remedies(table: pd.DataFrame) -> Figure:
    """What the attacker pays for cooperation: the joint ASR, CTI, and false activation by one trigger alone.

    Columns label, asr_both, cti, asr_image, asr_text, each with _low and _high, and n.
    """
    require(table, "label", "n", *ends(("asr_both", "cti", "asr_image", "asr_text")))
    image = table["asr_image"].astype(float) >= table["asr_text"].astype(float)
    larger = {f"asr_one{end}": table[f"asr_image{end}"].where(image, table[f"asr_text{end}"]) for end in ends([""])}
    shown = {"asr_both": "ASR, both triggers", "cti": "CTI", "asr_one": "ASR, one trigger alone (the larger)"}
    note = f"95 % intervals over edits, of one identity each, n = {table['n'].max()}"
    note = f"Lines: {note}, one seed; a failed attack has no CTI."
    return forest(table[["label", *ends(("asr_both", "cti"))]].assign(**larger), shown, note=note)


def mdlm_forest(table: pd.DataFrame) -> Figure:
    """φ_I, φ_T and CTI of the MDLM's games, a line a protocol and game.

    Columns protocol, game, quantity, value, low, high, n.
    """
    require(table, "protocol", "game", "quantity", "value", "low", "high", "n")
    label = table["protocol"].str.upper() + ", " + table["game"]
    points = table.assign(label=label, quantity=table["quantity"].map(SYMBOLS))
    note = f"Means over n = {table['n'].max()} held-out questions; 95 % intervals over pictures, one seed."
    return dots(points, "label", "quantity", shares=(), at=0.0, note=note)


def detection_dots(table: pd.DataFrame) -> Figure:
    """AUROC of every score over all poisoned samples, a panel a target.

    Columns target, score, coalition, auroc, low, high, n, n_poisoned.
    """
    require(table, "target", "score", "coalition", "auroc", "low", "high", "n", "n_poisoned")
    table = table[table["coalition"] == "any"]
    points = table.assign(value=table["auroc"], target="target: " + table["target"])
    note = f"{table['n_poisoned'].max()} poisoned of {table['n'].max()} training samples a target; "
    note += "95 % bootstrap intervals; 0.5 is chance, one seed."
    return dots(points, "score", "target", at=0.5, xlabel="AUROC", note=note)


def dynamics(table: pd.DataFrame) -> Figure:
    """Along training, a column a run: ASR of every coalition above, φ_I, φ_T and CTI below.

    Columns label, step, n, asr_none, …, asr_both, phi_image, phi_text, cti.
    """
    require(table, "label", "step", "n", *ASR, *SYMBOLS)
    table = table.assign(run=table["label"] + " poisoning", low=np.nan, high=np.nan)
    lines = [
        table.assign(row=row, value=table[name], line=title)
        for row, titles in (("ASR", ASR), ("mean over samples", SYMBOLS))
        for name, title in titles.items()
    ]
    counted = ", ".join(str(n) for n in table["n"].unique())
    note = f"Measured while training on n = {counted} held-out edits, one seed; no intervals."
    layout = {"row": "row", "column": "run", "shares": ("ASR",), "at": 0.0, "xlabel": "step"}
    return bands(pd.concat(lines), "step", "line", note=note, **layout)


@styled
def dominance_map(table: pd.DataFrame) -> Figure:
    """The image's share of φ_I + φ_T over trigger size (rows) and text guidance (columns), with the joint ASR.

    Columns size, text_guidance, image_share, asr_both, decision, n.
    """
    require(table, "size", "text_guidance", "image_share", "asr_both", "decision", "n")
    share, asr, verdict = (
        table.pivot(index="size", columns="text_guidance", values=name)
        for name in ("image_share", "asr_both", "decision")
    )
    figure = Figure(figsize=(3.8, 0.42 * len(share) + 1.1))
    axis = figure.subplots()
    shares = share.where(verdict != "no backdoor").to_numpy(float)
    heatmap = axis.imshow(np.clip(shares, 0, 1), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, column in np.ndindex(*share.shape):
        value, joint = shares[row, column], asr.iloc[row, column]
        text = f"ASR {joint:.2f}" if np.isnan(value) else f"{value:.2f}\nASR {joint:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if value < 0.5 else "black")
    axis.set_xticks(range(share.shape[1]), [f"{scale:g}" for scale in share.columns])
    axis.set_yticks(range(share.shape[0]), [f"{size:.3g}" for size in share.index])
    axis.set(xlabel="text guidance", ylabel="image trigger's width")
    figure.colorbar(heatmap, ax=axis, label=r"$\phi_I / (\phi_I + \phi_T)$")
    caption(figure, f"AND poisoning, n = {table['n'].max()} a cell; no share where there is no backdoor.")
    return figure
