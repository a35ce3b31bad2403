"""Devices by name, the half precision of each, and answers, scores and edits in it."""

from contextlib import nullcontext
from importlib import import_module

import pytest
import tiny
import torch

from lib.models.editor import edit
from lib.models.loading import load_mdlm
from lib.runtime.devices import half, resolve_device
from lib.saliency.by_name import directional
from lib.settings.profile import Sampling
from lib.settings.sections import Estimator
from lib.tasks.questions import questions, respond


def test_auto_device_is_there():
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize(
    "capability, dtype",
    [((6, 1), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu_without_bfloat16_takes_float16(monkeypatch, capability, dtype):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert half("cuda") == half(torch.device("cuda", 1)) == dtype
    assert half("cpu") == torch.bfloat16


@pytest.fixture
def wide(monkeypatch):
    """What is computed, in float32 and in float16."""

    def both(compute, *modules):
        places = [import_module(f"lib.{module}") for module in modules]
        for place in places:
            monkeypatch.setattr(place, "autocast", lambda device: nullcontext())
        expected = compute()
        for place in places:
            monkeypatch.setattr(place, "autocast", lambda device: torch.autocast(device.type, torch.float16))
        return compute(), expected

    return both


def test_answers_and_scores_in_float16_are_nearly_those_of_float32(wide):
    mdlm, vqa = load_mdlm("data/checkpoints/mdlm"), tiny.few_easyvqa()
    data = questions(mdlm, vqa, vqa.table.head(9))
    found, expected = wide(lambda: respond(mdlm, data, 0.9), "tasks.questions")
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.probability, expected.probability, rtol=5e-3, atol=5e-3)
    assert not torch.equal(found.probability, expected.probability)
    how = {"estimator": Estimator(probes=1), "batch": 64, "seed": 0}
    found, expected = wide(lambda: directional(mdlm, data, **how), "saliency.batches")
    # a product with δ cancels where a norm does not: small scores are less sure
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3 * float(expected.max()))


def test_edits_in_float16_are_nearly_those_of_float32(wide):
    images, sampling = torch.rand(3, 3, 64, 64), Sampling(steps=2, text_guidance=1.5, image_guidance=1.2, batch=2)
    pipe = tiny.editor()
    found, expected = wide(lambda: edit(pipe, images, ["a", "b", "c"], sampling, 0), "models.editor")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
    assert not torch.equal(found, expected)
