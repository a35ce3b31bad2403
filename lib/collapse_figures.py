"""Figures of the collapse study in full, in the style of `lib.plotting`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lib import plotting
from lib.collapse import Collapse
from lib.plotting import COALITIONS, QUANTITIES, WIDTH, Figure, caption, legend, line_style, require, styled
from lib.studies import Attack
from lib.triggers import image_trigger

OURS = {"marker": "o", "color": "black", "markersize": 3.5, "linestyle": "none", "zorder": 4}
SEED = {"marker": "|", "color": "0.35", "markersize": 7, "linestyle": "none", "zorder": 3}
NULL = {"marker": "s", "color": "0.35", "markerfacecolor": "white", "markersize": 4, "linestyle": "none", "zorder": 2}


@styled
def sample_view(result: Collapse, sample: int, title: str, credit: str) -> Figure:
    """One sample: the input, the true edit and the four outputs; below, v of each coalition, and φ and CTI."""
    figure = Figure(figsize=(WIDTH, 2.9))
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.1))
    names = [f"triggers {sign}" for sign in COALITIONS.values()]
    shown = zip(["input", "true edit", *names], [result.source, result.clean, *result.edited.unbind(1)], strict=True)
    for column, (name, pictures) in enumerate(shown):
        axis = figure.add_subplot(grid[0, column])
        plotting.draw_picture(axis, pictures[sample])
        axis.set_title(name, fontsize=7)
    phi = result.phi[sample].tolist()
    rows = {
        "$v(S)$": (list(COALITIONS.values()), result.v[sample].tolist()),
        "attribution": (list(QUANTITIES.values()), [*phi, float(result.cti[sample])]),
    }
    for style, (name, (labels, values)) in enumerate(rows.items()):
        axis = figure.add_subplot(grid[1, 3 * style : 3 * style + 3])
        none = [float("nan")] * len(values)
        plotting.draw_bars(
            axis, np.arange(len(values)), pd.DataFrame({"value": values, "low": none, "high": none}), 0.6,
            style=style, digits=2,
        )  # fmt: skip
        axis.set_xticks(range(len(labels)), labels)
        axis.set_ylabel(name)
    figure.suptitle(f"{title}: {result.triples['instruction'].iloc[sample]}", fontsize=7.5)
    caption(figure, credit)
    return figure


def marked(result: Collapse, attack: Attack) -> Float[Tensor, "sample 3 size size"]:
    """The samples' inputs under the attack's image trigger."""
    return image_trigger(attack.pair[0], attack.settings.get("trigger_size"))(result.source)


def ends(names: Iterable[str]) -> list[str]:
    """The columns of each number and its interval."""
    return [name + end for name in names for end in ("", "_low", "_high")]


def labelled(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """One row a seed, with the label of its configuration in `headline_table`; failed attacks without φ and CTI."""
    names = table["name"].where(table["part"] != "control", rows["label"].iloc[0])
    keys = zip(table["part"], names, table["protocol"], strict=True)
    label = dict(zip(keys, table["label"], strict=True))
    own = zip(rows["part"], rows["label"], rows["protocol"], strict=True)
    return rows.assign(label=[label[key] for key in own])


@styled
def forest(
    table: pd.DataFrame, quantities: Mapping[str, str] = QUANTITIES, seeds: pd.DataFrame | None = None
) -> Figure:
    """A panel a quantity (column → title), a line an attack: mean and interval, the paper's value, the null's.

    Columns label, and for every quantity itself, …_low, …_high; optionally paper_… and null_…. `seeds`: rows of the
    same labels, one a seed, each shown as a small mark. Where a mean is missing stands "failed attack".
    """
    require(table, "label", *ends(quantities))
    place = np.arange(len(table))[::-1]
    figure = Figure(figsize=(WIDTH, 0.2 * len(table) + 1.1))
    axes = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    shown = {"mean": OURS, "seeds": SEED, "null": NULL, "paper, 5 %": plotting.paper_style()}
    drawn = {"mean"}
    for axis, (name, title) in zip(axes, quantities.items(), strict=True):
        value, low, high = (table[f"{name}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
        reach = np.clip(np.nan_to_num([value - low, high - value]), 0, None)
        axis.axvline(0, color="0.7", linewidth=0.6)
        if seeds is not None:
            own = seeds[["label", name]].dropna()
            rows = own["label"].map(dict(zip(table["label"], place, strict=True)))
            axis.plot(own[name].astype(float), rows, **SEED)
            drawn.add("seeds")
        for kind, column in (("null", f"null_{name}"), ("paper, 5 %", f"paper_{name}")):
            if column in table and table[column].notna().any():
                axis.plot(table[column].astype(float), place, **shown[kind])
                drawn.add(kind)
        axis.errorbar(value, place, xerr=reach, capsize=1.5, elinewidth=0.8, **OURS)
        for row in np.flatnonzero(np.isnan(value)):
            axis.text(0.5, place[row], "failed attack", transform=axis.get_yaxis_transform(), ha="center", va="center",
                      fontsize=6, style="italic")  # fmt: skip
        axis.margins(x=0.12)
        if name.startswith("asr"):
            axis.set_xlim(-0.06, 1.06)
        axis.xaxis.set_major_locator(MaxNLocator(2))
        axis.set_title(title)
    axes[0].set_ylim(-0.6, len(table) - 0.4)
    axes[0].set_yticks(place, table["label"], fontsize=6.5)
    kinds = [kind for kind in shown if kind in drawn]
    legend(figure, [Line2D([], [], **shown[kind]) for kind in kinds], kinds)
    return figure


@styled
def dynamics(table: pd.DataFrame) -> Figure:
    """Along training, a column a run: ASR of every coalition above, φ_I, φ_T and CTI below.

    Columns label, step, n, asr_none, …, asr_both, phi_image, phi_text, cti.
    """
    require(table, "label", "step", "n", *(f"asr_{name}" for name in COALITIONS), *QUANTITIES)
    runs = table["label"].unique()
    figure = Figure(figsize=(WIDTH if len(runs) > 1 else 3.4, 3.6))
    axes = figure.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False)
    shown = {f"asr_{name}": f"ASR {sign}" for name, sign in COALITIONS.items()}, QUANTITIES
    for column, run in zip(axes.T, runs, strict=True):
        own = table[table["label"] == run]
        for axis, names in zip(column, shown, strict=True):
            _lines(axis, own, list(names))
        column[0].set(title=f"{run} poisoning", ylim=(-0.04, 1.04))
        column[1].axhline(0, color="0.7", linewidth=0.6)
        column[1].set_xlabel("step")
    axes[0, 0].set_ylabel("ASR")
    axes[1, 0].set_ylabel("mean over samples")
    for axis, names in zip(axes[:, -1], shown, strict=True):
        handles = [Line2D([], [], **line_style(k)) for k in range(len(names))]
        axis.legend(handles, names.values(), fontsize=6, handlelength=2.4)
    counts = ", ".join(str(n) for n in table["n"].unique())
    caption(figure, f"Measured while training on n = {counts} held-out edits, one seed; no intervals.")
    return figure


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
    figure = Figure(figsize=(3.8, 0.42 * len(share) + 1.3))
    axis = figure.subplots()
    known = share.where(verdict != "no backdoor").to_numpy(float)
    shown = axis.imshow(np.clip(known, 0, 1), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, column in np.ndindex(*share.shape):
        value, joint = known[row, column], asr.iloc[row, column]
        text = f"ASR {joint:.2f}" if np.isnan(value) else f"{value:.2f}\nASR {joint:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if value < 0.5 else "black")
    axis.set_xticks(range(share.shape[1]), [f"{scale:g}" for scale in share.columns])
    axis.set_yticks(range(share.shape[0]), [f"{size:.3g}" for size in share.index])
    axis.set(xlabel="text guidance", ylabel="image trigger's width")
    figure.colorbar(shown, ax=axis, label=r"$\phi_I / (\phi_I + \phi_T)$")
    caption(figure, f"AND poisoning, n = {table['n'].max()} a cell; no share where there is no backdoor.")
    return figure


@styled
def remedies(table: pd.DataFrame) -> Figure:
    """What the attacker pays for cooperation: the joint ASR against CTI, and false activation by one trigger alone.

    Columns label, asr_both, cti, asr_image, asr_text, each with _low and _high, and n.
    """
    names = ("asr_both", "cti", "asr_image", "asr_text")
    require(table, "label", "n", *ends(names))
    figure = Figure(figsize=(WIDTH, 2.9))
    left, right = figure.subplots(1, 2, sharey=True)
    for style, (_, row) in enumerate(table[ends(names)].astype(float).iterrows()):
        look = line_style(style) | {"linestyle": "none"}
        false = max(("asr_image", "asr_text"), key=lambda name: row[name])
        for axis, name in ((left, "cti"), (right, false)):
            spans = [
                [[max(row[n] - row[f"{n}_low"], 0)], [max(row[f"{n}_high"] - row[n], 0)]] for n in (name, "asr_both")
            ]
            axis.errorbar(row[name], row["asr_both"], xerr=spans[0], yerr=spans[1], elinewidth=0.6, **look)
    left.set(xlabel="CTI", ylabel="ASR with both triggers", ylim=(-0.04, 1.04))
    right.set(xlabel="ASR with one trigger alone (the larger)", xlim=(-0.04, 1.04))
    left.axvline(0, color="0.7", linewidth=0.6)
    handles = [Line2D([], [], **(line_style(k) | {"linestyle": "none"})) for k in range(len(table))]
    figure.legend(handles, table["label"], loc="outside upper center", ncols=2, fontsize=6.5)
    about = "95 % intervals over edits, of one identity each"
    caption(figure, f"Lines: {about}, n = {table['n'].max()}, one seed; a failed attack has no CTI.")
    return figure


@styled
def mdlm_forest(table: pd.DataFrame) -> Figure:
    """φ_I, φ_T and CTI of the MDLM's games, a line a protocol and game.

    Columns protocol, game, quantity, value, low, high, n.
    """
    require(table, "protocol", "game", "quantity", "value", "low", "high", "n")
    rows = []
    for (protocol, game), part in table.groupby(["protocol", "game"], sort=False):
        row = {"label": f"{protocol.upper()}, {game}"}
        for line in part.itertuples():
            row |= {line.quantity: line.value, f"{line.quantity}_low": line.low, f"{line.quantity}_high": line.high}
        rows.append(row)
    figure = forest(pd.DataFrame(rows))
    caption(figure, f"Means over n = {table['n'].max()} held-out questions; 95 % intervals over pictures, one seed.")
    return figure


@styled
def detection_dots(table: pd.DataFrame) -> Figure:
    """AUROC of every score over all poisoned samples, a panel a target.

    Columns target, score, coalition, auroc, low, high, n, n_poisoned.
    """
    require(table, "target", "score", "coalition", "auroc", "low", "high", "n", "n_poisoned")
    table = table[table["coalition"] == "any"]
    names, targets = table["score"].unique(), table["target"].unique()
    figure = Figure(figsize=(WIDTH, 0.17 * len(names) + 1.0))
    axes = figure.subplots(1, len(targets), sharey=True, sharex=True, squeeze=False)[0]
    for axis, target in zip(axes, targets, strict=True):
        own = table[table["target"] == target].set_index("score").loc[names]
        reach = np.clip([own["auroc"] - own["low"], own["high"] - own["auroc"]], 0, None)
        place = np.arange(len(names))[::-1]
        axis.errorbar(own["auroc"], place, xerr=reach, fmt="o", color=plotting.PALETTE[0], markersize=3, capsize=1.5)
        axis.axvline(0.5, color="0.7", linewidth=0.6)
        axis.set(title=f"target: {target}", xlabel="AUROC", xlim=(-0.04, 1.04))
    axes[0].set_yticks(place, names, fontsize=6.5)
    counts = f"{table['n_poisoned'].max()} poisoned of {table['n'].max()} training samples"
    caption(figure, f"{counts} a target; 95 % bootstrap intervals; 0.5 is chance, one seed.")
    return figure


def _lines(axis: Axes, table: pd.DataFrame, names: list[str]) -> None:
    for style, name in enumerate(names):
        axis.plot(table["step"], table[name], **line_style(style))
