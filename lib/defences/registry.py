"""One's own defences, by a name that a profile may then say."""

from __future__ import annotations

from lib.defences.interface import Defence
from lib.settings import names

OWN: dict[str, Defence] = {}


def register(name: str, defence: Defence) -> None:
    """Let profiles name it in `disp_grid`, and the DiSP study try it beside ours.

    It enters the keys of its rows by its own source. One's own is replaced by what is registered later by its name.
    Raises ValueError for a name of ours, and for what cannot be called.
    """
    if not callable(defence):
        raise ValueError(f"defence is {defence!r}: it must be a function of a Defender.")
    names.own(name, names.DEFENCES)
    OWN[name] = defence
