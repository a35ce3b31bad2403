"""Where masking is enough: the size of the trigger × how much is masked × by which score."""

from __future__ import annotations

import pandas as pd

from lib.figures.panels import bands
from lib.figures.style import Figure, counts, require
from lib.models.mdlm import Mdlm
from lib.studies.attacks.mdlm import asked, poisoned_mdlm, trigger_tokens
from lib.studies.disp.defences import defence_rows
from lib.studies.disp.figures import RATIO
from lib.studies.disp.outcomes import METRICS, ratio_study, succeeds
from lib.studies.disp.tables import curve_cases, methods_of, unattacked_performance
from lib.studies.run import Run
from lib.tasks.questions import draw_rows

COLUMNS = ["tokens", "method", "ratio", "metric", "value", "low", "high", "seeds", "n"]


def phase_table(run: Run) -> pd.DataFrame:
    """The phase diagram: ASR with trigger when masked at inference, by trigger size, ρ and score; means over seeds.

    Of the seeds whose attack succeeded, measured against the fine-tune without poison. Columns tokens
    (`covered_tokens`), method, ratio, metric, value, low, high (the lowest and the highest seed), seeds, n.
    """
    rows, cases = [], curve_cases(run, "phase")
    plain = unattacked_performance(run) if cases else None
    for case in cases:
        case_run = case.run(run)
        before = defence_rows(case_run, "no defence").set_index("metric")["value"]
        if not succeeds(before[METRICS[0]], before[METRICS[1]], plain - before[METRICS[2]]):
            continue
        mdlm = poisoned_mdlm(case_run)[0]
        table = ratio_study(case_run, mdlm, methods_of(run, "phase"))
        tokens = covered_tokens(case_run, mdlm)
        rows.append(table[table["metric"] == METRICS[0]].assign(tokens=tokens, seed=case_run.seed))
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    by = pd.concat(rows, ignore_index=True).groupby(["tokens", "method", "ratio", "metric"], sort=False)
    ends = {"value": by["value"].mean(), "low": by["value"].min(), "high": by["value"].max()}
    return pd.DataFrame(ends | {"seeds": by["seed"].nunique(), "n": by["n"].sum()}).reset_index()[COLUMNS]


def covered_tokens(run: Run, mdlm: Mdlm) -> int:
    """How many vision tokens the trigger covers, of photographs the mean over the test questions of figure 2."""
    vqa, table = asked(run, "test")
    table = draw_rows(table, run.profile.disp.curve_questions, run.seed, "test")
    return round(trigger_tokens(run, mdlm, vqa, table).sum(1).float().mean().item())


def phase_curves(table: pd.DataFrame) -> Figure:
    """ASR with trigger against ρ, a panel a score, a line a size of the trigger. Columns as of `phase_table`."""
    require(table, *COLUMNS)
    note = f"Means over {table['seeds'].max()} seeds, {counts(table)} in all; bands: from the lowest to the highest. "
    note += "Masked at inference, no training. Oracle: the trigger's own tokens, whatever ρ."
    lines = table.assign(trigger=table["tokens"].map(lambda n: f"{n} token{'s' * (n > 1)}"))
    layout = {"column": "method", "xlabel": RATIO, "ylabel": METRICS[0], "nested": True}
    return bands(lines, "ratio", "trigger", note=note, **layout)
