import copy

import pytest
import torch
from test_saliency import VISION, Linear, inputs, mdlm
from torch.func import jacrev
from torch.nn import functional as F

from lib.config import generator
from lib.kernels.fisher import signs
from lib.saliency import fisher_jacobian
from lib.saliency_rivals import attention_received, finite_difference, occlusion

SCORES = [attention_received, occlusion, finite_difference]


class Occludable(Linear):
    mask_embedding = torch.tensor([0.3, -0.2, 0.1])


def prefix_mdlm():
    model = mdlm()
    model.config.attention = "prefix"
    return model


MODELS = [Occludable, mdlm, prefix_mdlm]


def inputs_of(make):
    vision, prompt = inputs(3 if make is Occludable else 8)
    if make is not Occludable:
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


@pytest.mark.parametrize("make", MODELS)
def test_finite_difference_is_the_mean_divergence_along_signs(make):
    model = make()
    vision, prompt = inputs_of(make)
    score = finite_difference(model, vision, prompt, probes=2, step=0.3, seed=4)
    draw, expected = generator(4, "finite differences"), 0
    for _ in range(2):
        moved = vision + 0.3 * signs(vision.shape, draw)
        expected = expected + divergences(model, vision, prompt, moved) / 0.3**2
    torch.testing.assert_close(score.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_finite_difference_nears_the_quadratic_form_as_the_step_shrinks(make):
    """Of one and the same δ: δᵀ J_iᵀ F J_i δ in the limit, whose mean is the trace."""
    model = make()
    vision, prompt = (x[:1] for x in inputs_of(make))
    delta = signs(vision.shape, generator(0, "finite differences"))[0].double()

    log_p_of, place = exactly(model), vision[0].double()
    moved = torch.einsum("lvid,id->ilv", jacrev(log_p_of)(place, prompt[0]), delta)
    p = log_p_of(place, prompt[0]).exp()
    limit = ((p * moved.square()).sum(-1) - (p * moved).sum(-1).square()).sum(-1).detach()
    steps = (0.8, 0.2, 0.05)
    errors = [(finite_difference(model, vision, prompt, step=step)[0] - limit).abs().sum() for step in steps]
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]
    assert errors[2] < 0.1 * limit.sum()


def test_many_variants_go_through_the_model_in_parts(monkeypatch):
    model = mdlm()
    whole = occlusion(model, *inputs(8))
    monkeypatch.setattr("lib.saliency_rivals.VARIANTS", 3)
    torch.testing.assert_close(occlusion(model, *inputs(8)), whole)


def test_a_token_that_is_masked_or_unseen_changes_nothing():
    model = Occludable()
    vision, prompt = inputs()
    vision[:, 2] = model.mask_embedding
    assert (occlusion(model, vision, prompt)[:, [1, 2]] < 1e-10).all()
    assert (finite_difference(model, vision, prompt)[:, 1] < 1e-8).all()


@pytest.mark.parametrize(("make", "step"), [(Linear, 0.02), (mdlm, 0.05)])
def test_finite_differences_of_random_signs_have_the_exact_trace_as_their_mean(make, step):
    model = make()
    vision, prompt = inputs(3 if make is Linear else 8)
    exact = fisher_jacobian(model, vision, prompt, exact=True)
    single = torch.stack([finite_difference(model, vision, prompt, step=step, seed=s) for s in range(100)])
    error = single.std(0) / 100**0.5
    assert ((single.mean(0) - exact).abs() <= 4.5 * error + 0.02 * exact + 1e-6).all()
    assert (error < 0.2 * exact + 1e-6).all()  # so the line above can fail
    first, again, other = (finite_difference(model, vision, prompt, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


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
    if config.attention == "prefix":
        seen[:, :-asking, -asking:] = False
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


@pytest.mark.parametrize("make", [mdlm, prefix_mdlm])
def test_attention_received_is_the_mean_over_positions_heads_and_layers(make):
    model = make()
    vision, prompt = inputs_of(make)
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


@pytest.mark.parametrize("make", [mdlm, prefix_mdlm])
@pytest.mark.parametrize("score", SCORES)
def test_bf16_gives_nearly_the_float32_scores(score, make):
    """Of vision tokens in bf16, and under autocast; a step of 0.1 would drown in its rounding."""
    model = make()
    vision, prompt = inputs_of(make)
    vision = vision.bfloat16()
    step = {"step": 1.0} if score is finite_difference else {}
    full = score(model, vision.float(), prompt, **step)
    near = {"rtol": 0.2, "atol": 0.05 * float(full.max())}
    half = score(model, vision, prompt, **step)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, **near)
    with torch.autocast("cpu", torch.bfloat16):
        half = score(model, vision.float(), prompt, **step)
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


@pytest.mark.parametrize("change", [{"probes": 0}, {"probes": True}, {"step": 0.0}, {"step": float("nan")}])
def test_finite_difference_refuses(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"{name}="):
        finite_difference(Linear(), *inputs(), **change)
