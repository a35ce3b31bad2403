"""One fault put in, and whether what was promised held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """kind: the row of the table. what: the fault. held: whether the promise held. said: what the code said."""

    kind: str
    what: str
    held: bool
    said: str


def refusal(kind: str, what: str, call: Callable[[], Any], *words: str) -> Trial:
    """Whether `call` raises ValueError or OSError in one sentence with all of `words` in it."""
    try:
        given = call()
    except (ValueError, OSError) as error:
        said = str(error)
        one = bool(said) and "\n" not in said and "Traceback" not in said
        return Trial(kind, what, one and all(word in said for word in words), said)
    except Exception as error:  # noqa: BLE001, whatever it is, it is not what was promised
        return Trial(kind, what, False, f"{type(error).__name__}: {error}")
    return Trial(kind, what, False, f"accepted: {str(given)[:80]}")
