"""One's own data sets, by a name that a profile may then say.

    register_questions("shapes", lambda split, size: MyQuestions(split, size))
    overrides = {"data": {"questions": "shapes"}}       # of a notebook
"""

from __future__ import annotations

from collections.abc import Callable

from lib.data.interface import EditData, QuestionData
from lib.settings import names

EDITS: dict[str, Callable[[int], EditData]] = {}
QUESTIONS: dict[str, Callable[[str, int], QuestionData]] = {}


def register_edits(name: str, load: Callable[[int], EditData]) -> None:
    """Let `data.edits` name it. `load(size)` gives the edits, their pictures `size` pixels a side.

    It enters keys by its own source, as all that is registered. One's own is replaced by what is registered later by
    its name. Raises ValueError for what cannot be called.
    """
    _register(name, load, EDITS, names.EDIT_SETS)


def register_questions(name: str, load: Callable[[str, int], QuestionData]) -> None:
    """Let `data.questions` name it. `load(split, size)` gives the questions of "train" or "test", as above.

    Raises ValueError for a name of ours too.
    """
    _register(name, load, QUESTIONS, names.QUESTION_SETS)


def _register(name: str, load: Callable, catalogue: dict[str, Callable], listed: list[str]) -> None:
    if not callable(load):
        raise ValueError(f"load is {load!r}: it must be a function that gives the data.")
    names.own(name, listed)
    catalogue[name] = load
