"""What share of `make figures` does each job take? From the times that Snakemake wrote down in its last run.

    make figures && python -m benchmarks.figures

Jobs run two at a time, so the shares are of the jobs' summed time, not of what the clock shows.
"""

from __future__ import annotations

import argparse

import pandas as pd

from benchmarks.harness import main
from lib.settings.paths import BUILD

TIMES = BUILD / "laptop" / "times"


def rows(chosen: argparse.Namespace) -> list[dict]:
    """One row a job: seconds, share of all jobs' seconds, mean CPU load in percent of one core."""
    files = sorted(TIMES.glob("*.tsv"))
    if not files:
        print(f"{TIMES} holds no times: run `make figures` first")
    table = [pd.read_csv(file, sep="\t").iloc[-1] for file in files]
    total = sum(row["s"] for row in table)
    return [
        {"case": file.stem, "share": row["s"] / total, "seconds": row["s"], "load": row["mean_load"]}
        for file, row in zip(files, table, strict=True)
    ]


main(__name__, rows, __file__)
