"""Faults put in, and what held: `make test-faults` writes the table docs/faults.csv and lists what did not hold.

PYTHONPATH=. python tests/faults [inputs untrusted corruption changes surroundings kills]
"""

import importlib
import signal
import sys
import time

import pandas as pd
from trial import Trial

from lib.runtime.store import write_atomic
from lib.settings.paths import ROOT

TABLE, MODULES = ROOT / "docs" / "faults.csv", ("inputs", "untrusted", "corruption", "changes", "surroundings", "kills")


def main(chosen: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = 0
    for name in chosen or MODULES:
        if name not in MODULES:
            sys.exit(f"tests/faults: {name!r} must be one of {', '.join(MODULES)}")
        begun, tried = time.monotonic(), []
        try:
            for trial in importlib.import_module(name).trials():
                tried.append(trial)
                if not trial.held:
                    print(f"NOT HELD  {trial.kind}: {trial.what}\n          {trial.said[:400]}", flush=True)
        except KeyboardInterrupt:
            print(f"{name}: stopped after {len(tried)}, which are kept", flush=True)
        finally:
            if tried:
                failed += sum(not trial.held for trial in tried)
                keep(tried)
        print(f"{time.monotonic() - begun:.0f} s", flush=True)
    return 1 if failed else 0


def keep(tried: list[Trial]) -> None:
    """Count them in the table, in place of what it had of their kinds."""
    counted = pd.DataFrame([trial.__dict__ for trial in tried]).groupby("kind", sort=False)["held"]
    counted = counted.agg(tried="size", held="sum").reset_index()
    known = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    known = [row for row in known if row["kind"] not in set(counted["kind"])] + counted.to_dict("records")
    write_atomic(TABLE, pd.DataFrame(known).to_csv(index=False).encode())
    print(counted.to_string(index=False), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
