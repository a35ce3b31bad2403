"""A store to look into: what it holds is read, and nothing is made.

    run = replace(run, store=Held(run.store, "make figures"))     # of a widget: a moved slider trains nothing
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.runtime.store import Store


class Held(Store):
    """The same store, to what keeps in memory that which was read from one too. Raises LookupError, which says the
    command that makes it, for what is not there, or damaged."""

    def __init__(self, store: Store, command: str):
        super().__init__(store.root)
        self._store, self._whole, self._command = store, store._whole, command

    def __eq__(self, other: object) -> bool:
        return self._store is (other._store if isinstance(other, Held) else other)

    def __hash__(self) -> int:
        return hash(self._store)

    def _make(self, path: Path, content: bytes, make: Callable[[Path], Any]) -> None:
        raise LookupError(f"the store does not hold the {path.parent.name} of this choice: `{self._command}` makes it")
