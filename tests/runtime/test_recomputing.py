"""Saliency of published models with activations computed again: the same scores, for the memory of one layer."""

import pytest
import tiny
import torch
from tiny_mdlms import ADAPTERS, inputs

from benchmarks.activations import peak_bytes
from benchmarks.full_size import TOY
from lib.models.llada import IMAGE
from lib.models.llada_v import LladaVConfig, LladaVModel
from lib.models.mdlm import Mdlm
from lib.runtime.devices import recomputed
from lib.runtime.seeds import generator
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.words import joint_fisher_jacobian

SEEN = TOY | {"vision": TOY["vision"] | {"image_size": 112}}
PROBES = 3


@pytest.fixture(scope="module", params=[name for name in ADAPTERS if name != "mdlm"])
def made(request, tmp_path_factory) -> Mdlm:
    return ADAPTERS[request.param](tmp_path_factory.mktemp(request.param))


def given(made: Mdlm) -> tuple:
    return inputs(made)[:2]


def layers_of(made: Mdlm) -> torch.nn.ModuleList:
    return getattr(made.model.model, "decoder", made.model.model).layers


def scores(made: Mdlm) -> torch.Tensor:
    model = made.model
    found = [fisher_jacobian(model, *given(made), probes=PROBES, seed=4)]
    if hasattr(model, "embedding"):
        found.extend(joint_fisher_jacobian(model, *given(made), probes=PROBES, seed=4))
    return torch.cat(found, 1)


@pytest.mark.parametrize("half", [False, True])
def test_the_scores_are_those_of_kept_activations_and_probe_after_probe(made, half, monkeypatch):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        again = scores(made)
        monkeypatch.setattr(type(made.model), "supports_gradient_checkpointing", False)
        kept = scores(made)
    assert (kept > 0).any()
    torch.testing.assert_close(again, kept, rtol=0.05 if half else 1e-5, atol=1e-7)


def test_every_layer_is_computed_again_once_for_all_probes(made):
    passes = []
    hooks = [layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1)) for layer in layers_of(made)]
    fisher_jacobian(made.model, *given(made), probes=PROBES)
    for hook in hooks:
        hook.remove()
    assert len(passes) == 2 * len(layers_of(made))


def test_the_model_is_as_before_also_where_something_is_raised(made):
    def state():
        return made.model.training, [layer.gradient_checkpointing for layer in layers_of(made)]

    before = state()
    assert before == (False, [False] * len(before[1]))
    with recomputed(made.model) as again:
        assert again and state() == (True, [True] * len(before[1]))
    assert state() == before
    with pytest.raises(RuntimeError, match="out of memory"), recomputed(made.model):
        raise RuntimeError("out of memory")
    assert state() == before


def test_our_own_mdlm_keeps_its_activations():
    model = tiny.mdlm().model
    with recomputed(model) as again:
        assert not again and not model.training


def peak(layers: int, probes: int) -> int:
    torch.manual_seed(0)
    model = LladaVModel(LladaVConfig(**SEEN | {"num_hidden_layers": layers})).eval().requires_grad_(False)
    vision = torch.randn(2, model.config.vision_length, SEEN["hidden_size"], generator=generator(0))
    prompt = torch.full((2, 5), 7)
    prompt[:, 0] = IMAGE
    return peak_bytes(lambda: fisher_jacobian(model, vision, prompt, probes=probes))


def test_a_layer_more_costs_its_input_alone_and_a_probe_more_the_same_at_any_depth(monkeypatch):
    config = LladaVConfig(**SEEN)
    stream = 2 * (config.vision_length + 5 + config.response_length) * config.hidden_size * 4
    layer = (peak(10, 4) - peak(2, 4)) / 8
    assert stream <= layer < 1.5 * stream
    assert abs((peak(10, 8) - peak(10, 4)) - (peak(2, 8) - peak(2, 4))) < 0.01 * peak(10, 4)
    monkeypatch.setattr(LladaVModel, "supports_gradient_checkpointing", False)
    assert (peak(10, 4) - peak(2, 4)) / 8 > 10 * stream
