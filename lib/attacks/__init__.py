"""The compromised models of both studies: base models fine-tuned on poisoned data, kept in the store."""

from lib.config import Run
from lib.datasets import easyvqa, openmoji
from lib.store import code_digest


def data_spec(run: Run) -> dict:
    """What every artifact that saw data and models depends on."""
    data = {"settings": run.profile.data.model_dump(mode="json"), "code": code_digest(easyvqa, openmoji)}
    return {"data": data, "seed": run.seed, "device": run.device.type}
