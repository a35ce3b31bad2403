"""Rows that `make figures` computes only with FULL=1: read from a committed table for as long as they follow from this
code, these settings and these base models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from lib.runtime.store import write_atomic


@dataclass(frozen=True)
class Part:
    """Rows of one attack. key: of all that they follow from. further: whether they wait for FULL=1. here: whether the
    store has what they are read from."""

    key: str
    further: bool
    here: bool
    rows: Callable[[], pd.DataFrame]


def gathered(parts: Iterable[Part], committed: Path) -> pd.DataFrame:
    """The rows of all parts, with the columns made, "here" or "FULL=1", and key.

    Further ones that the store has not are those of the file `committed`; where that has none of the same key, they are
    left out. Where the store has one, the file is written anew, with all that hold.
    """
    held = pd.read_csv(committed, float_precision="round_trip") if committed.exists() else pd.DataFrame({"key": []})
    tables, further, computed = [], [], False
    for part in tqdm(list(parts), desc="attacks", leave=False):
        here = part.here or not part.further
        rows = part.rows().assign(key=part.key) if here else held[held["key"] == part.key]
        if rows.empty:
            continue
        tables.append(rows.assign(made="here" if here else "FULL=1"))
        if part.further:
            further.append(rows.assign(made="FULL=1"))
            computed |= here
    if computed:
        write_atomic(committed, _first(pd.concat(further, ignore_index=True)).to_csv(index=False).encode())
    return _first(pd.concat(tables, ignore_index=True)) if tables else pd.DataFrame(columns=["made", "key"])


def _first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["made", "key", *(name for name in table if name not in ("made", "key"))]]
