import copy
import itertools

import pytest
import torch
from scored_models import POSITIONS, VISION, WIDTH, Linear, inputs, mdlm
from torch.func import jacrev

from lib.kernels.fisher import NOISES
from lib.saliency.jacobian import DIRECTIONS, fisher_jacobian
from lib.saliency.masking import mask_top, random_scores

DIRECTIONS_ = pytest.mark.parametrize("direction", DIRECTIONS)


def reference(model, vision, prompt, direction="all", top=None, positions=None):
    """The score from the whole Jacobian and the whole Fisher matrix, in float64."""
    if isinstance(model, torch.nn.Module):
        model = copy.deepcopy(model).double()
    blank = torch.full((1, model.config.response_length), model.config.mask_id)
    rows = []
    for k, (sample, words) in enumerate(zip(vision.double(), prompt, strict=True)):

        def logits(tokens, words=words):
            return model.logits(tokens[None], words[None], blank)[0]

        jacobian = jacrev(logits)(sample).double()  # position, vocabulary, token, direction
        z = logits(sample).double()
        if top:
            left_out = torch.ones_like(z).scatter(-1, z.topk(top).indices, 0).bool()
            z = z.masked_fill(left_out, -torch.inf)
        p = z.softmax(-1)
        fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        if positions is not None:
            fisher = fisher * positions.expand(len(vision), -1)[k][:, None, None]
        if direction == "all":
            rows.append(torch.einsum("lvid,lvw,lwid->i", jacobian, fisher, jacobian))
        else:
            along = torch.einsum("lvid,id->lvi", jacobian, model.mask_embedding.double() - sample)
            rows.append(torch.einsum("lvi,lvw,lwi->i", along, fisher, along) / 2)
    return torch.stack(rows).detach()


@DIRECTIONS_
@pytest.mark.parametrize("make", [Linear, mdlm])
def test_exact_is_the_explicit_quadratic_form(make, direction):
    model = make()
    vision, prompt = inputs(WIDTH if make is Linear else 8)
    score = fisher_jacobian(model, vision, prompt, direction=direction, exact=True)
    assert score.shape == (3, VISION) and score.dtype == torch.float32
    torch.testing.assert_close(score.double(), reference(model, vision, prompt, direction), rtol=1e-4, atol=1e-8)


def test_exact_along_the_mask_is_what_the_divergence_begins_with():
    """KL(p ‖ p moved h of the way to the mask) / h² for h → 0, by central differences in float64."""
    model, step = Linear(), 1e-3
    vision, prompt = inputs()
    vision = vision.double()
    score = fisher_jacobian(model, vision, prompt, exact=True).double()
    log_p = model.logits(vision, prompt, None).log_softmax(-1)
    for token in range(VISION):
        moved = torch.zeros_like(vision)
        moved[:, token] = model.mask_embedding - vision[:, token]
        there, back = (model.logits(vision + h * moved, prompt, None).log_softmax(-1) for h in (step, -step))
        divergence = (log_p.exp() * (log_p - (there + back) / 2)).sum((1, 2)) / step**2
        torch.testing.assert_close(score[:, token], divergence, rtol=1e-4, atol=1e-9)


@DIRECTIONS_
def test_positions_and_the_highest_logits_alone_can_count(direction):
    model = mdlm()
    vision, prompt = inputs(8)
    first, mixed = torch.tensor([True, False]), torch.tensor([[True, False], [False, True], [False, False]])
    for positions in (first, mixed):
        score = fisher_jacobian(model, vision, prompt, direction=direction, exact=True, positions=positions)
        expected = reference(model, vision, prompt, direction, positions=positions)
        torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=1e-8)
        many = fisher_jacobian(model, vision, prompt, direction=direction, probes=2000, positions=positions)
        torch.testing.assert_close(many, score, rtol=0.25, atol=1e-6)
    for top in (1, 2, 5):
        expected = reference(model, vision, prompt, direction, top=top)
        many = fisher_jacobian(model, vision, prompt, direction=direction, probes=2000, top_logits=top)
        torch.testing.assert_close(many.double(), expected, rtol=0.25, atol=1e-6)
        if direction == "mask":
            score = fisher_jacobian(model, vision, prompt, exact=True, top_logits=top)
            torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=1e-8)
    every = fisher_jacobian(model, vision, prompt, direction=direction, top_logits=7)
    more = fisher_jacobian(model, vision, prompt, direction=direction, top_logits=100)
    assert torch.equal(every, more)


@pytest.mark.parametrize("scale", [1, 20])  # of the logits: at 20 nearly all positions are certain
def test_exact_takes_no_more_passes_than_the_head_is_wide(scale):
    model = mdlm(vocabulary=40)
    model.head.weight.data *= scale
    vision, prompt = inputs(8)
    expected = reference(model, vision, prompt)
    passes = []
    hook = model.norm.register_full_backward_hook(lambda *given: passes.append(1))
    score = fisher_jacobian(model, vision, prompt, direction="all", exact=True)
    hook.remove()
    torch.testing.assert_close(score.double(), expected, rtol=2e-4, atol=1e-7 * float(expected.max()))
    assert 0 < len(passes) <= 2 * 8  # positions × width, not × vocabulary


def test_exact_of_a_certain_response_is_zero():
    model = Linear()
    model.weight[:, 0] += 1e4
    for direction in DIRECTIONS:
        score = fisher_jacobian(model, inputs()[0].abs(), inputs()[1], direction=direction, exact=True)
        assert (score == 0).all()


@DIRECTIONS_
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("make", [Linear, mdlm])
def test_the_estimate_is_unbiased_and_more_probes_bring_it_nearer(make, noise, direction):
    model = make()
    vision, prompt = inputs(WIDTH if make is Linear else 8)
    way = {"direction": direction}
    exact = fisher_jacobian(model, vision, prompt, exact=True, **way)

    def estimate(probes, seed):
        return fisher_jacobian(model, vision, prompt, probes=probes, seed=seed, noise=noise, **way)

    single = torch.stack([estimate(1, s) for s in range(300)])
    error = single.std(0) / 300**0.5
    assert ((single.mean(0) - exact).abs() <= 4.5 * error + 1e-6).all()
    assert (error < 0.2 * exact + 1e-6).all()  # so the line above can fail
    many = estimate(300, 1000)
    assert ((many - exact).abs() <= 4.5 * error + 1e-6).all()
    assert (single >= 0).all() and (exact >= 0).all()


def spread(make, noise, probes):
    """Mean squared error of the estimate, relative to the exact score, token by token."""
    model = make()
    vision, prompt = inputs(WIDTH if make is Linear else 8)
    exact = fisher_jacobian(model, vision, prompt, exact=True)
    seen = exact > 1e-6
    found = [fisher_jacobian(model, vision, prompt, probes=probes, seed=s, noise=noise) for s in range(100)]
    return float(((torch.stack(found) / exact - 1)[:, seen]).square().mean())


@pytest.mark.parametrize("make", [Linear, mdlm])
def test_signs_are_nearer_than_normal_noise(make):
    normal, sign = (spread(make, noise, 4) for noise in ("normal", "sign"))
    assert sign < 0.9 * normal


def test_the_response_is_fully_masked_and_an_unseen_token_scores_zero():
    model = Linear()
    vision, prompt = inputs()
    for direction, exact in itertools.product(DIRECTIONS, (True, False)):
        score = fisher_jacobian(model, vision, prompt, direction=direction, exact=exact)
        assert model.blank.unique().tolist() == [0] and model.blank.shape[1] == POSITIONS
        assert (score[:, 1] == 0).all() and (score[:, [0, 2, 3]] > 0).all()


@pytest.mark.parametrize("noise", NOISES)
def test_the_seed_alone_decides(noise):
    model = Linear()
    vision, prompt = inputs()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fisher_jacobian(model, vision, prompt, seed=5, noise=noise)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(fisher_jacobian(model, vision, prompt, seed=5, noise=noise), first)
    assert not torch.equal(fisher_jacobian(model, vision, prompt, seed=6, noise=noise), first)
    assert torch.equal(fisher_jacobian(model, vision, prompt, seed=5), first) == (noise == "sign")


def test_it_leaves_model_and_vision_alone_and_works_without_gradients():
    model = mdlm()
    vision, prompt = inputs(8)
    before = vision.clone()
    with torch.no_grad():
        score = fisher_jacobian(model, vision, prompt)
    assert torch.equal(vision, before) and not vision.requires_grad and not score.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    leaf = vision.clone().requires_grad_()
    torch.testing.assert_close(fisher_jacobian(model, leaf, prompt), score)
    assert leaf.grad is None


@DIRECTIONS_
def test_bf16_vision_gives_nearly_the_float32_scores(direction):
    model = mdlm()
    vision, prompt = inputs(8)
    vision, way = vision.bfloat16(), {"direction": direction}
    half = fisher_jacobian(model, vision, prompt, exact=True, **way)
    assert half.dtype == torch.float32
    full = fisher_jacobian(model, vision.float(), prompt, exact=True, **way)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.01 * float(full.max()))


@DIRECTIONS_
@pytest.mark.parametrize("noise", NOISES)
def test_autocast_gives_nearly_the_float32_scores(noise, direction):
    model = mdlm()
    vision, prompt = inputs(8)
    way = {"noise": noise, "probes": 14, "direction": direction}
    full = fisher_jacobian(model, vision, prompt, **way)
    with torch.autocast("cpu", torch.bfloat16):
        half = fisher_jacobian(model, vision, prompt, **way)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.15, atol=0.02 * float(full.max()))


def test_an_empty_batch_and_a_single_token():
    model = mdlm()
    vision, prompt = inputs(8)
    assert fisher_jacobian(model, vision[:0], prompt[:0]).shape == (0, VISION)
    one = Linear()
    one.weight = one.weight[:, :, :1]
    for direction, exact in itertools.product(DIRECTIONS, (True, False)):
        score = fisher_jacobian(one, vision[:1, :1, :WIDTH], prompt[:1], direction=direction, exact=exact)
        assert score.shape == (1, 1)


VISION_OK, PROMPT_OK = inputs()
REFUSED = [
    ({"vision": VISION_OK[0]}, r"vision must be floating \[batch, vision, dim\], not torch.float32 \[4, 3\]"),
    ({"vision": VISION_OK.long()}, "vision must be floating .* not torch.int64"),
    ({"vision": VISION_OK.tolist()}, "vision must be floating .* not list"),
    ({"vision": VISION_OK.clone().index_fill_(0, torch.tensor([1]), torch.nan)}, "vision holds NaN"),
    ({"prompt": PROMPT_OK[0]}, r"prompt must be integers \[batch, prompt\], not torch.int64 \[3\]"),
    ({"prompt": PROMPT_OK.float()}, "prompt must be integers .* not torch.float32"),
    ({"prompt": PROMPT_OK.bool()}, "prompt must be integers .* not torch.bool"),
    ({"prompt": PROMPT_OK[:2]}, "prompt has 2 rows for 3 of vision"),
    ({"probes": 0}, "probes=0 must be"),
    ({"probes": 1.5}, "probes=1.5 must be"),
    ({"probes": True}, "probes=True must be"),
    ({"noise": "uniform"}, "noise='uniform' must be one of sign, normal"),
    ({"direction": "up"}, "direction='up' must be one of mask, all"),
    ({"top_logits": 0}, "top_logits=0 must be None or an integer of at least 1"),
    ({"top_logits": 3, "exact": True, "direction": "all"}, "top_logits=3 must be None for the exact trace"),
    ({"positions": torch.ones(3, dtype=torch.bool)}, r"positions must be bool \[2\] or \[3, 2\], not torch.bool \[3\]"),
    ({"positions": torch.ones(2)}, "positions must be bool .* not torch.float32"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refusals_name_the_field(change, message):
    given = {"vision": VISION_OK, "prompt": PROMPT_OK} | change
    with pytest.raises(ValueError, match=message):
        fisher_jacobian(Linear(), **given)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.1, 0), (0.3, 2), (0.5, 3), (1.0, 7)])
def test_most_salient_takes_the_rounded_down_share_of_the_highest(ratio, count):
    scores = torch.tensor([[3.0, 1, 7, 5, 2, 6, 4], [1.0, 2, 3, 4, 5, 6, 7]])
    chosen = mask_top(scores, ratio)
    assert chosen.tolist() == [[score > 7 - count for score in row] for row in scores.tolist()]


def test_most_salient_prefers_the_earlier_of_equals():
    scores = torch.tensor([[1.0] * 70, [0.0] * 35 + [1.0] * 35])
    first, second = (row.nonzero()[:, 0].tolist() for row in mask_top(scores, 0.1))
    assert first == list(range(7)) and second == list(range(35, 42))
    assert mask_top(torch.zeros(0, 7), 0.5).shape == (0, 7)


def test_the_share_is_rounded_down_from_the_number_as_it_is_written():
    scores = torch.arange(100.0)[None]
    assert [int(mask_top(scores, share).sum()) for share in (0.29, 0.57, 0.07, 0.295, 0.3)] == [29, 57, 7, 29, 30]


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_most_salient_refuses_what_is_no_share(ratio):
    with pytest.raises(ValueError, match="ratio=.* must be in"):
        mask_top(torch.zeros(1, 4), ratio)


def test_random_scores_depend_on_the_seed_alone():
    first = random_scores(5, 7, 0)
    assert first.shape == (5, 7) and torch.equal(first, random_scores(5, 7, 0))
    assert not torch.equal(first, random_scores(5, 7, 1))
