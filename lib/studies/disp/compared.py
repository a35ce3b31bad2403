"""What several seeds of an attack come to: a defence is judged on the seeds whose attack succeeded.

    strength = attack_strength(run)                     # of lib.studies.disp.tables, as are the rows
    over_attacks(case_table(run, "trigger"), strength)  # means over the seeds
    beside(case_table(run, "trigger"), strength)        # DiSP less the others, attack by attack
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lib.metrics.intervals import over_seeds
from lib.studies.disp.headline import over_seeds_of

CASE = ["part", "label", "seed"]


def over_attacks(
    rows: pd.DataFrame, strength: pd.DataFrame, by: Sequence[str] = ("part", "label", "rate")
) -> pd.DataFrame:
    """Rows of `case_table` as means over the seeds: under a defence over those whose attack succeeded, if any did.

    strength  `attack_strength`, which says so. by: the columns that tell attacks apart.

    Columns those of `by`, defence, knows, metric, value, low, high (t over seeds; of a single seed its own, over
    pictures), n, interval, seeds, lowest, highest, attacks (seeds whose attack succeeded).
    """
    rows = rows.assign(is_attack=_succeeded(rows, strength))
    columns, lines = [*by, "defence", "knows", "metric"], []
    for key, group in rows.groupby(columns, sort=False):
        attacks = int(group["is_attack"].sum())
        judged = group if attacks == 0 or group["defence"].iloc[0] == "no defence" else group[group["is_attack"]]
        lines.append(dict(zip(columns, key, strict=True)) | over_seeds_of(judged) | {"attacks": attacks})
    return pd.DataFrame(lines)


def beside(
    rows: pd.DataFrame, strength: pd.DataFrame, by: Sequence[str] = ("part", "label"), name: str = "DiSP"
) -> pd.DataFrame:
    """How much more the defence `name` gives than every other, on the same attacks and questions: paired by seed.

    Of the attacks that succeeded alone; `by` tells apart those that have a line each. Columns those of `by`, defence,
    metric, value, low, high (t over seeds; of one seed none), n (seeds), interval, lowest, highest.
    """
    rows = rows[_succeeded(rows, strength)]
    keys, lines = [*by, "metric"], []
    wide = rows.pivot_table("value", [*dict.fromkeys([*by, *CASE, "metric"])], "defence", sort=False)
    for other in [each for each in wide if each not in (name, "no defence")]:
        gained = (wide[name] - wide[other]).dropna()
        for key, group in gained.groupby(level=keys, sort=False):
            ends = {"lowest": group.min(), "highest": group.max()}
            lines.append(dict(zip(keys, key, strict=True)) | {"defence": other} | over_seeds(group.tolist()) | ends)
    columns = [*by, "defence", "metric", "value", "low", "high", "n", "interval", "lowest", "highest"]
    return pd.DataFrame(lines, columns=columns)


def _succeeded(rows: pd.DataFrame, strength: pd.DataFrame) -> list[bool]:
    """By row. What is no attack at all did not."""
    succeeds = dict(zip(strength[CASE].itertuples(index=False, name=None), strength["succeeds"], strict=True))
    return [bool(succeeds.get(case, False)) for case in rows[CASE].itertuples(index=False, name=None)]
