"""`fine_tune`, from the package as a user calls it, beside the loss and the loop that it is made of."""

import pytest
import tiny
import torch

from lib.runtime.training import fit
from lib.settings.sections import Lora, Train
from lib.tasks import answer_loss, fine_tune, questions

SETTINGS = Train(steps=3, batch=4, lr=1e-2, warmup=1, precision="no", save_every=1, watch_every=2)


@pytest.fixture
def data():
    vqa = tiny.few_easyvqa()
    return questions(tiny.mdlm(), vqa, vqa.table.head(8))


def test_it_is_the_loop_on_the_answer_loss_in_place(data, tmp_path):
    made, other, before = tiny.mdlm(), tiny.mdlm(), tiny.mdlm().model.state_dict()
    curve = fine_tune(
        made, data, SETTINGS, seed=3, blank=2, label="x", work=tmp_path, watch=lambda step: {"seen": float(step)}
    )
    expected = fit(other.model, answer_loss(other, data, SETTINGS, 2), SETTINGS, label="x", seed=3)
    assert curve.drop(columns="seen").equals(expected) and curve["seen"].dropna().tolist() == [2, 3]
    after, same = made.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in after.items())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("tower.") for name in moved)
    assert (tmp_path / "progress.safetensors").exists()


def test_what_cannot_be_trained_is_refused(data):
    with pytest.raises(ValueError, match="data has no samples"):
        fine_tune(tiny.mdlm(), data[:0], SETTINGS)
    with pytest.raises(ValueError, match="for MdlmModel it must be null"):
        fine_tune(tiny.mdlm(), data, SETTINGS, lora=Lora(rank=2, alpha=4))
