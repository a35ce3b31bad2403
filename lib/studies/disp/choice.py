"""How DiSP's settings are chosen: on validation questions under the first seed's attack, by rules said beforehand.

    ratio_choice(run)       # ρ: the largest at which masked answers keep KEPT of what unmasked ones state
    tuning_choice(run)      # passes and rate: of those that leave ASR at SILENT at most, the best clean performance

Test questions and the other seeds judge what was chosen here.
"""

from __future__ import annotations

import pandas as pd

from lib.studies.attacks.mdlm import poisoned_mdlm
from lib.studies.data import watch_split
from lib.studies.disp.outcomes import METRICS, SILENT, ratio_study
from lib.studies.disp.purification import purified_mdlm
from lib.studies.run import Run, with_settings

KEPT = 0.89  # the paper's bar for clean performance
COLUMNS = ["label", "steps", "lr", "asr_with_trigger", "asr_without_trigger", "clean_performance"]


def ratio_choice(run: Run) -> pd.DataFrame:
    """ASR and clean performance of the compromised model against ρ on validation questions, or training questions of
    data without validation, masked at inference.

    Columns ratio, asr_with_trigger, kept (clean performance over that at ρ = 0), chosen.
    """
    split = "validation" if watch_split(run, "questions") == "validation" else "train"
    table = ratio_study(run, poisoned_mdlm(run)[0], ("directional",), split=split)
    wide = table.pivot_table("value", "ratio", "metric", sort=True)
    kept = wide[METRICS[2]] / wide[METRICS[2]].iloc[0]
    found = pd.DataFrame({"asr_with_trigger": wide[METRICS[0]], "kept": kept}).reset_index()
    return found.assign(chosen=found["ratio"] == largest_kept(found))


def largest_kept(table: pd.DataFrame) -> float | None:
    """The largest ratio at which, and at all smaller ones, KEPT is reached: columns ratio and kept. None: at none."""
    table = table.sort_values("ratio")
    reached = table["ratio"][(table["kept"] >= KEPT).cummin()]
    return None if reached.empty else float(reached.iloc[-1])


def tuning_choice(run: Run) -> pd.DataFrame:
    """The model purified with each of `disp_grid.tunings`, at the end of its training, on validation questions.

    Columns label, steps, lr, asr_with_trigger, asr_without_trigger, clean_performance, chosen.
    """
    rows = []
    for tuning in run.profile.disp_grid.tunings:
        settings = {"purify": tuning.settings, "watch_questions": run.profile.disp.curve_questions}
        case_run = with_settings(run, "disp", settings)
        last, purify = purified_mdlm(case_run)[1].dropna().iloc[-1], case_run.profile.disp.purify
        rows.append({"label": tuning.label, "steps": purify.steps, "lr": purify.lr} | last[COLUMNS[3:]].to_dict())
    table = pd.DataFrame(rows, columns=COLUMNS)
    clean = table["clean_performance"].where(table["asr_with_trigger"] <= SILENT)
    return table.assign(chosen=clean == clean.max())
