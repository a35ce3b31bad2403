"""Faults put in, and what held: `make test-faults` writes the table docs/faults.csv and lists what did not hold.

PYTHONPATH=. python tests/faults [inputs untrusted corruption kills]
"""

import importlib
import sys
import time

import pandas as pd

from lib.runtime.store import write_atomic
from lib.settings.paths import ROOT

TABLE, MODULES = ROOT / "docs" / "faults.csv", ("inputs", "untrusted", "corruption", "kills")


def main(chosen: list[str]) -> int:
    known = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    failed = 0
    for name in chosen or MODULES:
        if name not in MODULES:
            sys.exit(f"tests/faults: {name!r} must be one of {', '.join(MODULES)}")
        begun, tried = time.monotonic(), list(importlib.import_module(name).trials())
        table = pd.DataFrame([trial.__dict__ for trial in tried])
        for trial in tried:
            if not trial.held:
                print(f"NOT HELD  {trial.kind}: {trial.what}\n          {trial.said[:400]}")
        counted = table.groupby("kind", sort=False)["held"].agg(tried="size", held="sum").reset_index()
        known = [row for row in known if row["kind"] not in set(counted["kind"])] + counted.to_dict("records")
        failed += int((~table["held"]).sum())
        print(f"{counted.to_string(index=False)}\n{time.monotonic() - begun:.0f} s")
        write_atomic(TABLE, pd.DataFrame(known).to_csv(index=False).encode())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
