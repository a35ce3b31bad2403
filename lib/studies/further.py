"""Rows that `make figures` computes only with FULL=1: read from a committed table for as long as they follow from this
code, these settings and these base models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """The rows of all parts after the columns made, "here" or "FULL=1", and key.

    Further ones that the store has not are those of the file `committed`; where that has none of the same key, they are
    left out. Where the store has one, the file is written anew, with all that hold.
    """
    held, shown, further, computed = _records(committed), [], [], False
    for part in tqdm(list(parts), desc="attacks", leave=False):
        here = part.here or not part.further
        known = part.rows().to_dict("records") if here else held.get(part.key, [])
        rows = [{"made": "here" if here else "FULL=1", "key": part.key} | row for row in known]
        shown += rows
        if part.further:
            further += [row | {"made": "FULL=1"} for row in rows]
            computed |= here
    if computed:
        write_atomic(committed, pd.DataFrame(further).to_csv(index=False).encode())
    return pd.DataFrame(shown)


def _records(committed: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's rows by key."""
    if not committed.exists():
        return {}
    table = pd.read_csv(committed, float_precision="round_trip").drop(columns="made")
    return {key: group.drop(columns="key").to_dict("records") for key, group in table.groupby("key", sort=False)}
