"""Adapters found again in the weights that they were merged into."""

import copy

import pytest
import tiny
import torch
from safetensors.torch import load_file

from lib.models.adapters import adapted_unet
from lib.models.merged import load_adapters, merged_adapters, save_adapters
from lib.runtime.seeds import generator
from lib.settings.sections import Lora

RANK = 3


@pytest.fixture(scope="module")
def base():
    return tiny.editor().unet


@pytest.fixture(scope="module")
def merged(base):
    """The base with adapters of random weights merged into it."""
    unet, draw = copy.deepcopy(base), generator(5)
    with adapted_unet(unet, Lora(rank=RANK, alpha=2 * RANK), seed=0), torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) / 10)
    return unet


@torch.no_grad()
def predicted(unet):
    draw, config = generator(1), unet.config
    sample = torch.randn(2, config.in_channels, 16, 16, generator=draw)
    text = torch.randn(2, 5, config.cross_attention_dim, generator=draw)
    return unet(sample, torch.tensor([3, 500]), encoder_hidden_states=text).sample


def test_b_a_is_what_was_merged(base, merged):
    before, after = base.state_dict(), merged.state_dict()
    adapters = merged_adapters(merged, base, RANK)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) >= 16 and {name.removesuffix(".weight") for name in changed} == {
        name.removesuffix(".lora_A.weight") for name in adapters if "lora_A" in name
    }
    for name in changed:
        a, b = (adapters[f"{name.removesuffix('.weight')}.lora_{part}.weight"] for part in "AB")
        assert a.shape == (RANK, before[name].shape[1]) and b.shape == (before[name].shape[0], RANK)
        torch.testing.assert_close(before[name] + b @ a, after[name], rtol=0, atol=1e-5)


def test_saved_they_make_the_base_predict_what_the_merged_does(base, merged, tmp_path):
    save_adapters(merged_adapters(merged, base, RANK), tmp_path / "new")
    (file,) = (tmp_path / "new").iterdir()
    assert {weight.dtype for weight in load_file(file).values()} == {torch.float16}
    again = copy.deepcopy(base)
    load_adapters(again, tmp_path / "new")
    moved = (predicted(merged) - predicted(base)).abs().max()
    assert moved > 0.01 and (predicted(again) - predicted(merged)).abs().max() < 0.02 * moved


def test_a_difference_that_is_none_of_adapters_is_refused(base, merged):
    with pytest.raises(ValueError, match=f"rank={RANK - 1} is less than that of the difference in .*attn"):
        merged_adapters(merged, base, RANK - 1)
    other = copy.deepcopy(merged)
    with torch.no_grad():
        other.conv_in.weight += 0.1
    with pytest.raises(ValueError, match=r"conv_in\.weight differs from the base's"):
        merged_adapters(other, base, RANK)
    assert not any(weight.any() for weight in merged_adapters(base, base, RANK).values())
