"""Rows as of `lib.studies.disp.tables.case_table`, and which of their attacks succeeded."""

import pandas as pd

from lib.studies.disp.outcomes import METRICS


def outcome(value, **columns):
    numbers = {"value": value, "low": value - 0.01, "high": value + 0.02, "n": 1000, "interval": "Wilson over clusters"}
    common = {"part": "seed", "label": "", "rate": 0.1, "defence": "DiSP", "knows": "nothing", "metric": METRICS[0]}
    return common | columns | numbers


def strength(rows, failed=()):
    table = pd.DataFrame(rows)[["part", "label", "seed"]].drop_duplicates()
    return table.assign(succeeds=[cell not in failed for cell in table[["label", "seed"]].itertuples(index=False)])
