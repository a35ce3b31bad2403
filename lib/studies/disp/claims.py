"""The paper's three claims beside what was found, in computed sentences."""

from __future__ import annotations

import pandas as pd

from lib.studies.disp.choice import KEPT
from lib.studies.disp.measures import MEASURES
from lib.studies.disp.outcomes import METRICS, STRONG

LOW = 0.05  # ASR after purification, by the paper
SHARE, LOST = 0.45, 0.02  # of the tokens masked, and of clean performance lost by that, by the paper


def claims(defences: pd.DataFrame, rates: pd.DataFrame, measures: pd.DataFrame, rate: float) -> str:
    """Whether each claim holds. Tables as of `main_table`, `over_attacks` of the rates and `clean_measures`.

    rate: that of the main table's attack.
    """
    wide = defences.pivot_table("value", "defence", "metric", sort=False)
    before, after = wide.loc["no defence"], wide.loc["DiSP"]
    text = [f"At {100 * rate:g} % ASR is {before[METRICS[0]]:.3f} before DiSP and {after[METRICS[0]]:.3f} after"]
    text[-1] += f" (claimed: above {STRONG} and below {LOW}): {_holds(bool(after[METRICS[0]] < LOW))}."
    kept = after[METRICS[2]] / before[METRICS[2]]
    verdict = _holds(bool(kept >= KEPT))
    text.append(f"It keeps {kept:.1%} of the clean performance (claimed: {KEPT:.0%} or more): {verdict}.")
    done = wide[(wide[METRICS[0]] < LOW) & (wide[METRICS[2]] > after[METRICS[2]])].index
    if len(done):
        text.append(f"As clean, and with more of the clean performance left: {', '.join(done)}.")
    asr = rates[(rates["metric"] == METRICS[0]) & (rates["rate"] > 0)].sort_values("rate")
    before, after = (asr[asr["defence"] == name].set_index("rate") for name in ("no defence", "DiSP"))
    strong = before[before["attacks"] > 0]
    learnt = [f"{100 * row.Index:g} % ({row.attacks} of {row.seeds} seeds)" for row in strong.itertuples()]
    tried = ", ".join(f"{100 * one:g} %" for one in before.index)
    text.append(f"Of the poison rates {tried} an attack at {', '.join(learnt) or 'none'}")
    if len(strong):
        text[-1] += f"; after DiSP the highest ASR of these is {after.loc[strong.index, 'highest'].max():.3f}"
    text[-1] += "."
    some = measures[(measures["ratio"] == SHARE) & (measures["method"].str.startswith("directional"))]
    for row in some.itertuples():
        lost = 1 - row.relative
        text.append(
            f"Masking {SHARE:.0%} costs the base model {lost:.1%} of {MEASURES.get(row.measure, row.measure)} "
            f"(claimed: under {LOST:.0%}): {_holds(bool(lost < LOST))}."
        )
    return " ".join(text)


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold here"
