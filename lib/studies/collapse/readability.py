"""Which trigger wins, against how far each moves the editor before any attack: a law to test.

Said before any of its attacks was trained. Under AND both triggers predict the attacker's target alike, so that the
one learnt first leaves the other nothing to explain. The predictor is x = log(d_T / d_I), with d the relative
displacement by the text and by the image trigger (`displacement`) in the *unattacked* editor: "given", of what the
U-Net is given; "told", of what it then predicts. The outcome is y = (φ_T − φ_I) / (φ_T + φ_I), each less its null:
1 where the text carries all, −1 where the image does. The law: y = tanh(slope · (x − middle)), slope > 0, fitted on two
thirds of the cells, judged on the rest.

Found once the cells were known, and so no test of anything: `within`, the rank correlation within one encoder.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.lines import Line2D
from scipy.optimize import least_squares

from lib.figures.style import WIDTH, Figure, caption, legend, line_style, require, styled
from lib.runtime.seeds import generator
from lib.studies.cases import attacks
from lib.studies.collapse.displacement import displacement_table
from lib.studies.collapse.tables import attack_row
from lib.studies.run import Run

PREDICTORS = {"given": "what the U-Net is given", "told": "what the U-Net predicts"}
PARTS = ("pair", "control", "cell")
RESAMPLES = 200
LEAST = 3  # cells that the law, of two parameters, is fitted on
COLUMNS = ["predictor", "fitted", "left_out", "middle", "middle_low", "middle_high", "slope", "slope_low", "slope_high"]
COLUMNS += ["rms", "rms_of_mean", "winner_right", "spearman"]


def cell_table(run: Run) -> pd.DataFrame:
    """One row a cell, an AND attack of the first seed: encoder, triggers, predictor_given and predictor_told, outcome
    with its interval over held-out edits (NaN of a failed attack), and whether the fit may see it (`fitted`)."""
    chosen = [a for a in attacks(run.profile) if a.part in PARTS and a.protocol == "and" and a.seed == 0]
    rows = pd.DataFrame(attack_row(run, attack) for attack in chosen)
    table = pd.concat([rows, displacement_table(run, chosen).drop(columns=["part", "label"])], axis=1)
    table["encoder"] = ["edits alone" if attack.model == "control" else "pre-trained" for attack in chosen]
    for name in PREDICTORS:
        table[f"predictor_{name}"] = np.log(table[f"{name}_text"] / table[f"{name}_image"])
    share = table[["image_share", "image_share_low", "image_share_high"]].astype(float)
    table["outcome"], table["outcome_low"], table["outcome_high"] = (1 - 2 * share.iloc[:, k] for k in (0, 2, 1))
    table["fitted"] = dealt(len(table), run.seed)
    return table


def dealt(count: int, seed: int) -> list[bool]:
    """Two thirds of `count` cells, drawn: those that the law is fitted on."""
    order = torch.randperm(count, generator=generator(seed, "readability cells"))
    fitted = torch.zeros(count, dtype=torch.bool)
    fitted[order[: round(2 * count / 3)]] = True
    return fitted.tolist()


def law(x: Float[np.ndarray, " cell"], middle: float, slope: float) -> Float[np.ndarray, " cell"]:
    """What the law says of cells with the predictor x."""
    return np.tanh(slope * (x - middle))


def fit_law(x: Float[np.ndarray, " cell"], y: Float[np.ndarray, " cell"]) -> tuple[float, float]:
    """(middle, slope) of least squares, slope in [0, 50]. Raises ValueError for fewer than LEAST cells."""
    if len(x) < LEAST:
        raise ValueError(f"x has {len(x)} cells: the law has two parameters, at least {LEAST} cells are needed")
    starts = [(float(np.median(x)), slope) for slope in (0.3, 1.0, 5.0)]
    bounds = ([x.min() - 3, 0.0], [x.max() + 3, 50.0])
    found = [least_squares(lambda p: law(x, *p) - y, start, bounds=bounds) for start in starts]
    middle, slope = min(found, key=lambda fit: fit.cost).x
    return float(middle), float(slope)


def law_table(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row a predictor: middle and slope with 95 % intervals (bootstrap over the fitted cells), then of the cells
    left out: n, rms of the law, rms of the fitted cells' mean (knowing no law), the share of winners told rightly, and
    over all cells Spearman's rank correlation. No rows where fewer than LEAST of the fitted cells are attacks."""
    done = table[table["outcome"].notna()]
    fitted, rest = done[done["fitted"]], done[~done["fitted"]]
    draw, rows = np.random.default_rng(seed), []
    if len(fitted) < LEAST:
        return pd.DataFrame(columns=COLUMNS)
    for name, title in PREDICTORS.items():
        column = f"predictor_{name}"
        x, y = fitted[column].to_numpy(), fitted["outcome"].to_numpy()
        best = fit_law(x, y)
        again = [fit_law(x[pick], y[pick]) for pick in draw.integers(len(x), size=(RESAMPLES, len(x)))]
        low, high = np.quantile(np.array(again), [0.025, 0.975], axis=0)
        told, true = law(rest[column].to_numpy(), *best), rest["outcome"].to_numpy()
        row = {"predictor": title, "fitted": len(x), "left_out": len(true)}
        for k, part in enumerate(("middle", "slope")):
            row |= {part: best[k], f"{part}_low": low[k], f"{part}_high": high[k]}
        row |= {"rms": _rms(told - true), "rms_of_mean": _rms(y.mean() - true)}
        row["winner_right"] = float((np.sign(told) == np.sign(true)).mean()) if len(true) else float("nan")
        row["spearman"] = float(done[column].corr(done["outcome"], "spearman"))
        rows.append(row)
    return pd.DataFrame(rows)[COLUMNS]


def within(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of predictor and outcome over the cells of one encoder. Columns predictor, encoder,
    spearman, n."""
    rows = []
    for (name, title), (encoder, cells) in product(PREDICTORS.items(), table.groupby("encoder", sort=False)):
        done = cells[cells["outcome"].notna()]
        rank = done[f"predictor_{name}"].corr(done["outcome"], "spearman") if len(done) > 1 else float("nan")
        rows.append({"predictor": title, "encoder": encoder, "spearman": float(rank), "n": len(done)})
    return pd.DataFrame(rows)


def _rms(errors: Float[np.ndarray, " cell"]) -> float:
    return float(np.sqrt(np.mean(np.square(errors)))) if len(errors) else float("nan")


@styled
def law_figure(table: pd.DataFrame, laws: pd.DataFrame, note: str = "") -> Figure:
    """Outcome against predictor, a panel a predictor, a mark a cell: filled where the law was fitted on it, open where
    it was left out; the paper's own settings are ringed. Tables as of `cell_table` and `law_table`."""
    require(table, "encoder", "outcome", "fitted", "part", *(f"predictor_{name}" for name in PREDICTORS))
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.subplots(1, len(PREDICTORS), sharey=True)
    looks = {name: line_style(k) | {"linestyle": "none"} for k, name in enumerate(table["encoder"].unique())}
    for axis, (name, title) in zip(axes, PREDICTORS.items(), strict=True):
        x = table[f"predictor_{name}"]
        for row in laws[laws["predictor"] == title].to_dict("records"):
            line = np.linspace(x.min() - 0.2, x.max() + 0.2, 200)
            axis.plot(line, law(line, row["middle"], row["slope"]), color="0.4", linewidth=1)
            axis.set_title(f"left out: RMS {row['rms']:.2f}, of the mean {row['rms_of_mean']:.2f}", fontsize=7)
        for encoder, look in looks.items():
            for fitted in (True, False):
                part = table[(table["encoder"] == encoder) & (table["fitted"] == fitted)]
                fill = {"markerfacecolor": look["color"] if fitted else "white"}
                axis.plot(part[f"predictor_{name}"], part["outcome"], **look | fill)
        papers = table[(table["part"] == "pair") & table["outcome"].notna()]
        ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": "0.3", "linestyle": "none"}
        axis.plot(papers[f"predictor_{name}"], papers["outcome"], **ring)
        axis.axhline(0, color="0.8", linewidth=0.6)
        axis.set(xlabel=r"$\log(d_T / d_I)$ of " + title, ylim=(-1.2, 1.2))
    axes[0].set_ylabel(r"$(\phi_T - \phi_I) / (\phi_T + \phi_I)$")
    keys = [Line2D([], [], **look | {"markerfacecolor": look["color"]}) for look in looks.values()]
    legend(figure, keys, [f"encoder: {name}" for name in looks])
    caption(figure, note)
    return figure


def law_conclusion(table: pd.DataFrame, laws: pd.DataFrame) -> str:
    """Whether the law holds on the cells left out, by each predictor, and the cells that it tells worst."""
    failed = int(table["outcome"].isna().sum())
    text = [f"{len(table) - failed} of {len(table)} cells are attacks."]
    done = table[table["outcome"].notna()]
    if laws.empty:
        return text[0] + " They are too few for a law."
    for (name, title), (_, row) in zip(PREDICTORS.items(), laws.iterrows(), strict=True):
        better = "better" if row["rms"] < row["rms_of_mean"] else "no better"
        text.append(
            f"By {title} the law is {better} than knowing none on {row['left_out']} cells left out (RMS "
            f"{row['rms']:.2f}, the mean's {row['rms_of_mean']:.2f}); it names the winner in {row['winner_right']:.0%} "
            f"of them, and its rank correlation over all cells is {row['spearman']:.2f}."
        )
        wrong = (law(done[f"predictor_{name}"].to_numpy(), row["middle"], row["slope"]) - done["outcome"]).abs()
        text.append(f"Told worst: {done.loc[wrong.idxmax(), 'label']} (off by {wrong.max():.2f}).")
    for row in within(table).itertuples():
        ranked = f"the rank correlation with {row.predictor} is {row.spearman:.2f}"
        text.append(f"Within the {row.encoder} encoder {ranked}.")
    return " ".join(text)
