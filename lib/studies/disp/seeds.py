"""Every attack target and seed before and after DiSP, beside the base model: the rows that the headline is made of."""

from __future__ import annotations

import pandas as pd

from lib.runtime.keys import code_digest
from lib.studies.cases import Case, cases
from lib.studies.disp.defences import FILTERED, defence_rows, defence_spec
from lib.studies.disp.outcomes import METRICS, base_performance, succeeds
from lib.studies.further import Part, gathered
from lib.studies.run import Run

FURTHER = "disp_seeds.csv"  # in the folder of figures
STAGES = {"no defence": "before", "DiSP": "after", FILTERED: "filtered"}


def seed_rows(run: Run) -> pd.DataFrame:
    """Every target and seed of the study: the base model, and the compromised one under each of STAGES.

    The run's own target and seed are computed here, the others with FULL=1 (see `lib.studies.further`). Columns made,
    key, target, seed, stage, metric, value, low, high, n, interval, is_attack.
    """

    def part(case: Case) -> Part:
        case_run = case.run(run)
        specs = [defence_spec(case_run, name) for name in STAGES]
        key = run.store.key("disp-rows", {"specs": specs, "code": code_digest(__name__), "target": case.label})
        further = case.label != run.profile.disp.target or case.seed > 0
        here = all(run.store.has("defence", spec) for spec in specs)
        return Part(key, further, here, lambda: _rows(run, case))

    headline = [case for case in cases(run.profile) if case.part == "headline"]
    return gathered(map(part, headline), run.out / FURTHER)


def _rows(run: Run, case: Case) -> pd.DataFrame:
    case_run = case.run(run)
    tables = {"base": base_performance(case_run)}
    tables |= {stage: defence_rows(case_run, name) for name, stage in STAGES.items()}
    base, before = (tables[stage].set_index("metric")["value"] for stage in ("base", "before"))
    strong = succeeds(before[METRICS[0]], before[METRICS[1]], base[METRICS[2]] - before[METRICS[2]])
    labels = {"target": case.label, "seed": case_run.seed}
    rows = pd.concat([table.assign(**labels, stage=stage) for stage, table in tables.items()], ignore_index=True)
    columns = [*labels, "stage", "metric", "value", "low", "high", "n", "interval"]
    return rows[columns].assign(is_attack=strong)
