import copy

import pytest
import torch
from scored_models import VISION, Linear, inputs, mdlm
from torch.nn import functional as F

from lib.saliency.rivals import attention_by_layer, attention_received, late_attention, occlusion

SCORES = [attention_received, occlusion]


MODELS = [Linear, mdlm]


def inputs_of(make):
    vision, prompt = inputs(3 if make is Linear else 8)
    if make is not Linear:
        prompt[1, -1] = 2  # padded
    return vision, prompt


def exactly(model):
    """log p [position, vocabulary] of one sample at a masked response as a function, all of it in float64."""
    blank = torch.full((1, model.config.response_length), model.config.mask_id)
    if isinstance(model, Linear):
        return lambda vision, words: model.logits(vision[None], words[None], blank)[0].log_softmax(-1)
    same = copy.deepcopy(model).double()
    return lambda vision, words: same.head(same.states(vision[None], words[None], blank))[0].log_softmax(-1)


@torch.no_grad()
def divergences(model, vision, prompt, other):
    """KL(p ‖ q) with `other` in the place of each token in turn."""
    log_p_of, found = exactly(model), torch.zeros(vision.shape[:2], dtype=torch.float64)
    for k, words in enumerate(prompt):
        sample = vision[k].double()
        log_p = log_p_of(sample, words)
        for i in range(len(sample)):
            changed = sample.clone()
            changed[i] = other[k, i].double()
            found[k, i] = F.kl_div(log_p_of(changed, words), log_p, reduction="sum", log_target=True)
    return found


@pytest.mark.parametrize("make", MODELS)
def test_occlusion_is_the_divergence_without_the_token(make):
    model = make()
    vision, prompt = inputs_of(make)
    score = occlusion(model, vision, prompt)
    expected = divergences(model, vision, prompt, model.mask_embedding.detach().expand_as(vision))
    torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=1e-7)
    assert score.dtype == torch.float32 and (score[:, 0] > 0).all()


def test_many_variants_go_through_the_model_in_parts(monkeypatch):
    model = mdlm()
    whole = occlusion(model, *inputs(8))
    monkeypatch.setattr("lib.saliency.rivals.VARIANTS", 3)
    torch.testing.assert_close(occlusion(model, *inputs(8)), whole)


def test_a_token_that_is_masked_or_unseen_changes_nothing():
    model = Linear()
    vision, prompt = inputs()
    vision[:, 2] = model.mask_embedding
    assert (occlusion(model, vision, prompt)[:, [1, 2]] < 1e-10).all()


@torch.no_grad()
def attention_in_full(model, vision, prompt):
    """All attention of all layers from one masked matrix each, with the states of the whole sequence, in float64."""
    config, vision = model.config, vision.double()
    model = copy.deepcopy(model).double()
    response = torch.full((len(vision), config.response_length), config.mask_id)
    places = [range(VISION), range(VISION, VISION + prompt.shape[1])]
    start = VISION + config.prompt_length
    places.append(range(start, start + config.response_length))
    words = [vision, model.embedding(prompt), model.embedding(response)]
    x = torch.cat([part + model.position[list(at)] for part, at in zip(words, places, strict=True)], 1)
    seen = torch.cat([torch.ones(len(vision), VISION), prompt != config.pad_id, torch.ones(response.shape)], 1).bool()
    seen = seen[:, None].repeat(1, x.shape[1], 1)
    asking = config.response_length
    total = 0
    for block in model.blocks:
        query, key, value = block.qkv(block.before_attention(x)).chunk(3, -1)
        heads = []
        for q, k, v in zip(*(part.chunk(block.heads, -1) for part in (query, key, value)), strict=True):
            weight = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
            heads.append(weight @ v)
            total = total + weight[:, -asking:, :VISION].mean(1) / block.heads / len(model.blocks)
        x = x + block.out(torch.cat(heads, -1))
        x = x + block.mlp(block.before_mlp(x))
    return total


def test_attention_received_is_the_mean_over_positions_heads_and_layers():
    model = mdlm()
    vision, prompt = inputs_of(mdlm)
    score = attention_received(model, vision, prompt)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score.double(), attention_in_full(model, vision, prompt), rtol=1e-4, atol=1e-6)
    assert (score > 0).all() and (score.sum(1) < 1).all()
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_attention_leaves_no_hooks_after_an_error():
    model = mdlm()
    vision, prompt = inputs(8)
    with pytest.raises(IndexError):
        attention_received(model, vision, prompt + 100)
    assert not any(block._forward_pre_hooks for block in model.blocks)


@pytest.mark.parametrize("score", SCORES)
def test_nothing_is_changed_and_no_gradient_flows(score):
    model = mdlm()
    vision, prompt = inputs(8)
    before = vision.clone()
    found = score(model, vision.requires_grad_(), prompt)
    assert torch.equal(vision, before) and not found.requires_grad and found.shape == (3, VISION)
    assert score(model, vision[:0].detach(), prompt[:0]).shape == (0, VISION)
    alone = score(model, vision[:1, :1].detach(), prompt[:1])
    assert alone.shape == (1, 1) and (alone > 0).all()


@pytest.mark.parametrize("score", SCORES)
def test_bf16_gives_nearly_the_float32_scores(score):
    """Of vision tokens in bf16, and under autocast."""
    model = mdlm()
    vision, prompt = inputs_of(mdlm)
    vision = vision.bfloat16()
    full = score(model, vision.float(), prompt)
    near = {"rtol": 0.2, "atol": 0.05 * float(full.max())}
    half = score(model, vision, prompt)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, **near)
    with torch.autocast("cpu", torch.bfloat16):
        half = score(model, vision.float(), prompt)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, **near)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("score", SCORES)
def test_refusals_are_those_of_fisher_jacobian(score):
    vision, prompt = inputs(8)
    with pytest.raises(ValueError, match="vision must be floating"):
        score(mdlm(), vision[0], prompt)
    with pytest.raises(ValueError, match="prompt has 2 rows for 3 of vision"):
        score(mdlm(), vision, prompt[:2])
    with pytest.raises(ValueError, match="vision holds NaN"):
        score(mdlm(), vision * torch.nan, prompt)


def test_late_attention_is_that_of_the_later_half_of_the_layers():
    model = mdlm()
    layers = attention_by_layer(model, *inputs_of(mdlm))
    assert len(layers) == 2
    torch.testing.assert_close(late_attention(model, *inputs_of(mdlm)), layers[1])
