"""The compromised models of both studies: base models fine-tuned on poisoned data, kept in the store."""

from typing import Literal

from lib import data as readers
from lib.config import Run
from lib.data import easyvqa
from lib.data.faces import faces_digest
from lib.profile import Section
from lib.store import code_digest
from lib.study_data import digest


def data_spec(run: Run, kind: Literal["edits", "questions"]) -> dict:
    """What every artifact that saw data of that kind depends on."""
    data, given = run.profile.data, getattr(run.profile.data, kind)
    settings = data.model_dump(mode="json", include={"image_size", "held_out", "faces"})
    if isinstance(given, Section):
        about = {"settings": settings, "code": code_digest(readers), "photographs": digest(given)}
    else:
        about = {"settings": settings, "code": code_digest(easyvqa) if given == "easy-vqa" else faces_digest()}
    return {"data": about, "seed": run.seed, "device": run.device.type}
