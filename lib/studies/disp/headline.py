"""The paper's claim: every attack target before and after DiSP, over seeds, beside the base model.

    rows = seed_rows(run)               # of lib.studies.disp.seeds: a row a seed, stage and metric
    table = headline_table(rows)        # means over the seeds whose attack succeeded
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from lib.metrics.intervals import over_seeds
from lib.studies.disp.mmmu import MMMU
from lib.studies.disp.outcomes import KEYWORD_METRICS, METRICS

NAMES = {  # of metrics, in headline.csv
    METRICS[0]: "asr_with_trigger",
    METRICS[1]: "asr_without_trigger",
    METRICS[2]: "facts",
    KEYWORD_METRICS[0]: "keyword_asr_with_trigger",
    KEYWORD_METRICS[1]: "keyword_asr_without_trigger",
    MMMU: "mmmu",
}
COLUMNS = ["target", "stage", "metric", "value", "low", "high", "n", "interval", "seeds", "attacks"]
COLUMNS += ["lowest", "highest"]


def headline_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds whose attack succeeded, with t-intervals over seeds; of one seed its own interval.

    Columns target, stage, metric, value, low, high, n (samples in all), interval, seeds, attacks (seeds that
    succeeded), lowest, highest, relative (to the base model's value). Of an attack that failed with every seed there
    are the stages base and before alone.
    """
    lines = []
    for (target, stage, metric), group in rows.groupby(["target", "stage", "metric"], sort=False):
        attacks = int(group["is_attack"].sum())
        if stage in ("base", "before"):
            shown = group
        elif attacks:
            shown = group[group["is_attack"]]
        else:
            continue
        line = {"target": target, "stage": stage, "metric": metric, "attacks": attacks}
        lines.append(line | over_seeds_of(shown))
    table = pd.DataFrame(lines, columns=COLUMNS)
    base = table[table["stage"] == "base"].set_index(["target", "metric"])["value"]
    relative = [row.value / base[row.target, row.metric] if base[row.target, row.metric] else None
                for row in table.itertuples()]
    return table.assign(relative=relative)


def over_seeds_of(rows: pd.DataFrame) -> dict[str, Any]:
    """What rows of one metric, one a seed, come to: value, low, high, n (samples in all), interval, seeds, lowest,
    highest. The interval is t over seeds, of a single seed its own."""
    number = over_seeds(rows["value"].tolist(), int(rows["n"].min()))
    if len(rows) == 1:
        number = rows.iloc[0][list(number)].to_dict()
    ends = {"lowest": rows["value"].min(), "highest": rows["value"].max()}
    return number | {"n": int(rows["n"].sum()), "seeds": len(rows)} | ends


def headline_numbers(table: pd.DataFrame, target: str, clean: str = "facts") -> Iterator[dict[str, Any]]:
    """What `Report.number` takes: disp.<target>.<metric>.<stage>, those of the profile's own target as
    disp.<metric>.<stage> too; of DiSP on surer answers disp.filtered.<metric> for the profile's own target alone.

    clean: what clean performance is called: "accuracy" of questions without descriptions, "token_f1" of photographs.
    """
    kinds = NAMES | {METRICS[2]: clean}
    for row in table.to_dict("records"):
        number = {name: row[name] for name in ("value", "low", "high", "n", "seeds", "interval")}
        kind, goal = kinds[row["metric"]], re.sub(r"\W+", "_", row["target"])
        if row["stage"] == "filtered":
            names = [f"disp.filtered.{kind}"] if row["target"] == target else []
        else:
            names = [f"disp.{goal}.{kind}.{row['stage']}"]
            names += [f"disp.{kind}.{row['stage']}"] * (row["target"] == target)
        yield from ({"name": name} | number for name in names)
