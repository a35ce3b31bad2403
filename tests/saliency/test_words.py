import copy

import pytest
import torch
from torch.func import jacrev

from lib.models.mdlm import MdlmConfig, MdlmModel
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.words import joint_fisher_jacobian, mask_top_of_all

MASK, PAD = 3, 2


def mdlm():
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shapes = {"vocab_size": 7, "width": 8, "layers": 2, "prompt_length": 4, "response_length": 2}
    config = MdlmConfig(vision | {"image_size": 16, "patch_size": 8}, **shapes)
    model = MdlmModel(config).eval()
    for parameter in model.blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.head.weight)
    return model


def inputs():
    draw = torch.Generator().manual_seed(1)
    prompt = torch.tensor([[4, 5, PAD, PAD], [5, 5, 6, 4], [0, PAD, PAD, PAD]])
    return torch.randn(3, 4, 8, generator=draw), prompt


class GivenWords(torch.nn.Module):
    """Stands in for the embedding: the words are given; the response's come from the table."""

    def __init__(self, weight, words):
        super().__init__()
        self.weight, self.words = weight, words

    def forward(self, ids):
        return self.words if ids.shape[1] == 4 else self.weight[ids]


def reference(model, vision, prompt):
    """½ δᵀJᵀFJδ of every token from the whole Jacobian and the whole Fisher matrix, in float64."""
    blank = torch.full((1, 2), MASK)
    rows = []
    for sample, ids in zip(vision.double(), prompt, strict=True):
        given = copy.deepcopy(model).double()
        weight = given.embedding.weight.detach()
        words = weight[ids]

        def logits(tokens, given=given, ids=ids, weight=weight):
            given.embedding = GivenWords(weight, tokens[None, 4:])
            return given.logits(tokens[None, :4], ids[None], blank)[0]

        # `logits` ends in float32, hence the tolerance of the comparison
        tokens = torch.cat([sample, words])
        along = torch.einsum("lvid,id->lvi", jacrev(logits)(tokens).double(), weight[MASK] - tokens)
        p = logits(tokens).double().softmax(-1)
        fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        rows.append(torch.einsum("lvi,lvw,lwi->i", along, fisher, along) / 2)
    return torch.stack(rows).detach().split(4, 1)


def test_the_estimate_is_unbiased_for_both_kinds_of_token():
    model = mdlm()
    vision, prompt = inputs()
    exact = torch.cat(reference(model, vision, prompt), 1)
    single = torch.stack(
        [torch.cat(joint_fisher_jacobian(model, vision, prompt, probes=4, seed=s), 1) for s in range(200)]
    ).double()
    error = single.std(0) / 200**0.5
    assert ((single.mean(0) - exact).abs() <= 4.5 * error + 1e-6).all()
    assert (error < 0.15 * exact + 1e-6).all()  # so the line above can fail
    many = torch.cat(joint_fisher_jacobian(model, vision, prompt, probes=600, seed=1000), 1)
    assert ((many - exact).abs() <= 4.5 * error + 1e-6).all()
    assert (exact[:, :4] > 0).all() and (exact[:, 4:] > 0).equal(prompt != PAD)


def test_vision_scores_are_those_of_fisher_jacobian_to_the_bit():
    model = mdlm()
    vision, prompt = inputs()
    found, _ = joint_fisher_jacobian(model, vision, prompt, probes=3, seed=5)
    assert torch.equal(found, fisher_jacobian(model, vision, prompt, probes=3, seed=5))


def test_padding_scores_zero_and_does_not_count():
    model = mdlm()
    vision, prompt = inputs()
    _, words = joint_fisher_jacobian(model, vision, prompt)
    assert (words[prompt == PAD] == 0).all() and (words[prompt != PAD] > 0).all()
    short = torch.tensor([0, 2])  # of two words and of one
    _, words = joint_fisher_jacobian(model, vision[short], prompt[short])
    _, shorter = joint_fisher_jacobian(model, vision[short], prompt[short, :2])
    torch.testing.assert_close(words[:, :2], shorter, rtol=1e-4, atol=1e-7)


def test_it_leaves_the_model_alone_and_works_without_gradients():
    model = mdlm()
    vision, prompt = inputs()
    before, state = vision.clone(), torch.get_rng_state()
    with torch.no_grad():
        scores = joint_fisher_jacobian(model, vision, prompt)
    assert not any(part.requires_grad for part in scores) and torch.equal(vision, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.embedding._forward_hooks and torch.equal(torch.get_rng_state(), state)
    again = joint_fisher_jacobian(model, vision.clone().requires_grad_(), prompt)
    assert all(torch.equal(a, b) for a, b in zip(scores, again, strict=True))


def test_the_hook_is_removed_after_a_failure():
    model = mdlm()
    vision, _ = inputs()
    with pytest.raises(IndexError):
        joint_fisher_jacobian(model, vision, torch.full((3, 4), 99))
    assert not model.embedding._forward_hooks


def test_autocast_gives_nearly_the_float32_scores():
    model = mdlm()
    vision, prompt = inputs()
    full = joint_fisher_jacobian(model, vision, prompt, probes=8)
    with torch.autocast("cpu", torch.bfloat16):
        half = joint_fisher_jacobian(model, vision, prompt, probes=8)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.2, atol=0.03 * float(b.max()))


def test_empty_batches_have_empty_scores():
    vision, prompt = inputs()
    scores = joint_fisher_jacobian(mdlm(), vision[:0], prompt[:0])
    assert [part.shape for part in scores] == [(0, 4), (0, 4)]


@pytest.mark.usefixtures("untyped")
def test_refusals_name_the_field():
    model = mdlm()
    vision, prompt = inputs()
    nan = vision.clone().index_fill_(0, torch.tensor([1]), torch.nan)
    for given, message in [
        ((nan, prompt), "vision holds NaN"),
        ((vision, prompt.float()), "prompt must be integers"),
        ((vision, prompt[:2]), "prompt has 2 rows for 3 of vision"),
    ]:
        with pytest.raises(ValueError, match=message):
            joint_fisher_jacobian(model, *given)
    with pytest.raises(ValueError, match="probes=0 must be"):
        joint_fisher_jacobian(model, vision, prompt, probes=0)
    model.logits = lambda vision, prompt, response: MdlmModel.logits(model, vision, prompt.clone(), response)
    with pytest.raises(ValueError, match="model.embedding saw the prompt 0 times: it must be once"):
        joint_fisher_jacobian(model, vision, prompt)


VISION = torch.tensor([[5.0, 1, 9, 3], [5, 5, 5, 5]])
PROMPT = torch.tensor([[7.0, 2, 0, 0], [5, 6, 5, 0]])
PRESENT = torch.tensor([[True, True, False, False], [True, True, True, False]])


@pytest.mark.parametrize(
    ("ratio", "way", "vision", "prompt"),
    [
        (0.34, "joint", [[2], [0]], [[0], [1]]),  # 2 of 6; 2 of 7
        (0.5, "joint", [[0, 2], [0, 1]], [[0], [1]]),  # 3 of 6; 3 of 7
        (1.0, "joint", [[0, 1, 2, 3], [0, 1, 2, 3]], [[0, 1], [0, 1, 2]]),
        (0.0, "joint", [[], []], [[], []]),
        (0.5, "vision", [[0, 2], [0, 1]], [[], []]),
        (0.5, "prompt", [[], []], [[0], [1]]),  # 1 of 2; 1 of 3
        (1.0, "prompt", [[], []], [[0, 1], [0, 1, 2]]),
    ],
)
def test_the_highest_of_all_tokens_are_chosen_and_padding_never(ratio, way, vision, prompt):
    found = mask_top_of_all(VISION, PROMPT, PRESENT, ratio, way)
    places = [[row.nonzero()[:, 0].tolist() for row in part] for part in found]
    assert places == [vision, prompt]


def test_rows_without_a_word_and_no_rows_at_all():
    none = mask_top_of_all(VISION, torch.full((2, 4), 9.0), torch.zeros(2, 4).bool(), 0.5)
    assert none[0].sum(1).tolist() == [2, 2] and not none[1].any()
    empty = mask_top_of_all(VISION[:0], PROMPT[:0], PRESENT[:0], 0.5)
    assert [part.shape for part in empty] == [(0, 4), (0, 4)]


def test_other_ways_and_shares_are_refused():
    with pytest.raises(ValueError, match="way='text' must be one of vision, prompt, joint"):
        mask_top_of_all(VISION, PROMPT, PRESENT, 0.5, "text")
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="ratio=.* must be in"):
            mask_top_of_all(VISION, PROMPT, PRESENT, ratio)
