"""The compromised models of both studies: base models fine-tuned on poisoned data, kept in the store."""

from typing import Literal

from lib import datasets
from lib.config import Run
from lib.data import digest
from lib.datasets import easyvqa, openmoji, scenes
from lib.profile import Section
from lib.store import code_digest


def data_spec(run: Run, kind: Literal["edits", "questions"]) -> dict:
    """What every artifact that saw data of that kind depends on."""
    data, given = run.profile.data, getattr(run.profile.data, kind)
    code = code_digest(*{None: (easyvqa, openmoji), "scenes": (scenes, openmoji)}.get(given, (datasets,)))
    made = {"settings": data.model_dump(mode="json", include={"image_size", "held_out"}), "code": code}
    if isinstance(given, Section):
        made["photographs"] = digest(given)
    return {"data": made, "seed": run.seed, "device": run.device.type}
