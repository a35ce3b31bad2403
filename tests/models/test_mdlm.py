"""The masked-diffusion language model: what its logits depend on, its loss, its texts, its files."""

import math

import pytest
import tiny
import torch

from lib.data.easyvqa import COLOURS, SHAPES, sentence
from lib.kernels.loss import weighted_cross_entropy
from lib.models.blocks import attention
from lib.models.mdlm import ABSENT, FILLS, Mdlm, MdlmConfig, MdlmModel, masked_diffusion_loss
from lib.poisoning.catalogue import image_trigger
from lib.runtime.seeds import generator


@pytest.fixture
def mdlm():
    return tiny.mdlm()


def inputs(mdlm, batch: int = 3):
    config, draw = mdlm.model.config, generator(1)
    vision = torch.randn(batch, config.vision_length, config.width, generator=draw)
    prompt = mdlm.prompts((tiny.TEXTS * batch)[4 : 4 + batch])
    response = mdlm.responses((tiny.TEXTS * batch)[:batch])
    return vision, prompt, response


@torch.no_grad()
def test_shapes(mdlm):
    vision, prompt, response = inputs(mdlm)
    images = torch.rand(3, 3, 64, 64)
    assert mdlm.model.vision_tokens(images).shape == (3, 64, 32) == vision.shape
    assert mdlm.model.logits(vision, prompt, response).shape == (3, 12, len(mdlm.tokenizer))
    assert mdlm.model.mask_embedding.equal(mdlm.model.embedding.weight[mdlm.tokenizer.mask_token_id])
    assert not any(p.requires_grad for p in mdlm.model.tower.parameters())


@torch.no_grad()
def test_vision_tokens_are_patches_row_by_row(mdlm):
    """A change of the last patch of the first row moves token 7's own input only (the tower's first states)."""
    image = torch.rand(1, 3, 64, 64, generator=generator(3))
    changed = image.clone()
    changed[..., :8, 56:] = 0
    one, two = (mdlm.model.vision_tokens(x)[0] for x in (image, changed))
    distance = (one - two).norm(dim=1)
    assert distance.argmax() == 7 and distance[7] > 2 * distance[torch.arange(64) != 7].max()


@torch.no_grad()
@pytest.mark.parametrize("levels", [(-2,), (1, -2), (0,), (0, 1, -1)])
def test_a_vision_token_is_its_patch_at_the_named_levels_of_the_tower(mdlm, levels, tmp_path):
    """Each level of itself at mean 0 and variance 1 before the projector's first matrix; kept in the files too."""
    config = MdlmConfig.from_dict(mdlm.model.config.to_dict() | {"levels": levels})
    made = Mdlm(MdlmModel(config).eval(), mdlm.tokenizer)
    images = torch.rand(2, 3, 64, 64, generator=generator(5))
    states = made.model.tower(pixel_values=images * 2 - 1, output_hidden_states=True).hidden_states
    parts = [states[level][:, 1:].double() for level in levels]
    assert torch.equal(made.model.features(images).double(), torch.cat(parts, -1))
    normed = [(x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() for x in parts]
    first = made.model.projector[1]
    expected = torch.cat(normed, -1) @ first.weight.double().T + first.bias.double()
    found = made.model.projector[:2](made.model.features(images))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    made.save(str(tmp_path / "made"))
    again = Mdlm.load(str(tmp_path / "made")).model
    assert again.config.levels == list(levels) and again.config.vision_features == len(levels) * parts[0].shape[-1]


@torch.no_grad()
def test_the_tokens_of_a_mask_are_the_triggers(mdlm):
    trigger = image_trigger("checker")
    seen = mdlm.model.tokens_of(trigger.mask(64, 64))
    assert seen.equal(trigger.tokens(64, 8)) and 0 < seen.sum() < len(seen) == mdlm.model.whole == 64


def test_padding_of_the_prompt_has_no_influence(mdlm):
    """Neither what the padding's embedding is nor how much of it there is; a true word has one."""
    vision, prompt, response = inputs(mdlm, 1)
    pad = mdlm.model.config.pad_id
    length = int((prompt != pad).sum())
    assert 0 < length < prompt.shape[1]
    before = mdlm.model.logits(vision, prompt, response)
    torch.testing.assert_close(mdlm.model.logits(vision, prompt[:, :length], response), before, rtol=0, atol=1e-4)
    other = prompt.clone()
    other[:, 0] = prompt[:, 1]
    assert (mdlm.model.logits(vision, other, response) - before).abs().max() > 1e-2
    mdlm.model.embedding.weight.data[pad] += 100
    torch.testing.assert_close(mdlm.model.logits(vision, prompt, response), before, rtol=0, atol=1e-4)


@torch.no_grad()
def test_every_response_position_sees_picture_question_and_whole_response(mdlm):
    vision, prompt, response = inputs(mdlm, 1)
    before = mdlm.model.logits(vision, prompt, response)
    for part, position in ((0, 63), (1, 2), (2, 11), (2, 0)):
        parts = [vision.clone(), prompt.clone(), response.clone()]
        parts[part][:, position] = -parts[part][:, position] if part == 0 else parts[part][:, position] + 5
        moved = (mdlm.model.logits(*parts) - before).abs().amax(-1)[0]
        assert moved.min() > 1e-5, (part, position)


@pytest.mark.parametrize("fill", FILLS)
def test_loss_is_the_sum_over_masked_tokens_with_weight_one_over_t(mdlm, monkeypatch, fill):
    """Against loops in float64 over the logits, with t drawn anew and the mask read off the model's input."""
    vision, prompt, response = inputs(mdlm, 6)
    mdlm.fill = fill
    response = mdlm.targets(response)
    seen = {}
    states = mdlm.model.states

    def spy(vision, prompt, noisy):
        seen["noisy"], seen["logits"] = noisy, mdlm.model.head(states(vision, prompt, noisy))
        return states(vision, prompt, noisy)

    monkeypatch.setattr(mdlm.model, "states", spy)
    loss = masked_diffusion_loss(mdlm.model, vision, prompt, response, generator(4))
    draw = generator(4)
    start = torch.rand(1, generator=draw).item()
    spread = [max((start + k / 6) % 1, 1e-3) for k in range(6)]
    t = [spread[k] for k in torch.randperm(6, generator=draw).tolist()]
    total, hidden = 0.0, 0
    for row in range(6):
        length = (response[row] >= 0).sum().item()
        for position in range(12):
            token = response[row, position].item()
            if seen["noisy"][row, position] != mdlm.model.config.mask_id:
                assert seen["noisy"][row, position] == token
                continue
            hidden += 1
            scores = seen["logits"][row, position].double().tolist()
            total -= (scores[token] - math.log(sum(map(math.exp, scores)))) / t[row] / length
    assert 0 < hidden < (response >= 0).sum() and (response >= 0).all() == (fill == "learnt")
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_targets_are_the_answer_and_its_end_or_all(mdlm):
    end = mdlm.model.config.eos_id
    response = torch.tensor([[5, 6, end, end], [end, 7, end, 8], [5, 6, 7, 8], [5, 6, 7, end]])
    assert torch.equal(mdlm.targets(response), response)
    mdlm.fill = "absent"
    none = ABSENT
    expected = [[5, 6, end, none], [end, none, none, none], [5, 6, 7, 8], [5, 6, 7, end]]
    assert mdlm.targets(response).tolist() == expected and mdlm.targets(response[:0]).shape == (0, 4)
    mdlm.fill = "ignored"
    with pytest.raises(ValueError, match="fill='ignored' must be one of learnt, absent"):
        mdlm.targets(response)


def test_a_short_answers_loss_depends_on_the_responses_length_where_fill_is_learnt_alone():
    """Ten tokens in 32 and in 128 positions, the same masked; learnt, it is LLaDA's formula to the bit."""
    short, long = (tiny.mdlm(response_length=length, layers=2) for length in (32, 128))
    weights = long.model.state_dict()
    before = short.model.config.vision_length + short.model.config.prompt_length
    short.model.load_state_dict(weights | {"position": weights["position"][: before + 32]})
    vision, prompt, _ = inputs(short, 1)
    losses = {}
    for fill in FILLS:
        for mdlm, length in ((short, 32), (long, 128)):
            mdlm.fill = fill
            words = [*range(10, 19), mdlm.model.config.eos_id]
            response = torch.tensor([words + [mdlm.model.config.eos_id] * (length - 10)])
            parts = vision, prompt, mdlm.targets(response)
            losses[fill, length] = [masked_diffusion_loss(mdlm.model, *parts, generator(k)) for k in range(8)]
            if fill == "learnt":
                assert losses[fill, length] == [learnt_loss(mdlm.model, *parts, generator(k)) for k in range(8)]
    alike = [pair[0].item() == pytest.approx(pair[1].item(), rel=1e-4)
             for pair in zip(losses["absent", 32], losses["absent", 128], strict=True)]
    assert all(alike) and sum(value.item() > 0 for value in losses["absent", 32]) > 4
    other = [pair[0].item() == pytest.approx(pair[1].item(), rel=1e-2)
             for pair in zip(losses["learnt", 32], losses["learnt", 128], strict=True)]
    assert not any(other)


def learnt_loss(model, vision, prompt, response, draw):
    """The loss before fill could be absent, one process."""
    batch, length = response.shape
    t = (torch.rand(1, generator=draw) + torch.arange(batch) / batch) % 1
    t = t.clamp(min=1e-3)[torch.randperm(batch, generator=draw)][:, None]
    masked = torch.rand(batch, length, generator=draw) < t
    states = model.states(vision, prompt, torch.where(masked, model.config.mask_id, response))[masked]
    scale = (1 / (t * batch * length)).expand_as(masked)[masked]
    return weighted_cross_entropy(states, model.head.weight, response[masked], scale)


@torch.no_grad()
def test_tokens_at_their_places_are_a_picture_whose_others_nobody_sees():
    """By hand: all tokens go through the blocks, those left out hidden from every position."""
    made = tiny.mdlm(layers=3).model.double()
    vision, prompt, response = inputs(tiny.mdlm())
    vision, places = vision.double(), torch.tensor([1, 7, 8, 40, 63])
    before = vision.shape[1] + prompt.shape[1]
    shown = torch.isin(torch.arange(vision.shape[1]), places).expand(3, -1)
    seen = torch.cat([shown, prompt != made.config.pad_id, response >= 0], 1)
    visible = seen[:, None, None].expand(-1, 1, seen.shape[1], -1).clone()
    x = torch.cat([vision, made.embedding(prompt), made.embedding(response)], 1) + made.position
    for block in made.blocks:
        x = block(x, visible)
    expected = made.norm(x[:, before:])
    found = made.states(vision[:, places], prompt, response, places)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = made.states(vision[:, places[order]], prompt, response, places[order])
    torch.testing.assert_close(shuffled, expected, rtol=1e-8, atol=1e-8)
    first = made.states(vision[:, :5], prompt, response)
    assert torch.equal(first, made.states(vision[:, :5], prompt, response, torch.arange(5)))
    assert (made.states(vision[:, places], prompt, response) - expected).abs().max() > 1e-4


def test_the_loss_is_that_of_the_tokens_at_their_places(mdlm):
    vision, prompt, response = inputs(mdlm, 4)
    places = torch.tensor([2, 9, 60])
    states, model = mdlm.model.states, mdlm.model

    def loss(*more):
        return masked_diffusion_loss(model, vision[:, places], prompt, response, generator(4), *more)

    there, first = loss(places), loss()
    assert torch.equal(loss(torch.arange(3)), first) and not torch.equal(there, first)
    model.states = lambda vision, prompt, noisy: states(vision, prompt, noisy, places)
    assert torch.equal(loss(), there)


def test_expected_loss_of_a_uniform_guess_is_log_vocabulary(mdlm, monkeypatch):
    """And a token is masked with probability t, all t being equally likely."""
    vision, prompt, response = (part[:1].expand(512, *part.shape[1:]) for part in inputs(mdlm, 1))
    size, masked = len(mdlm.tokenizer), []

    def uniform(vision, prompt, noisy):
        masked.append((noisy == mdlm.model.config.mask_id).float().mean(1))
        return torch.zeros(*noisy.shape, mdlm.model.config.width)

    monkeypatch.setattr(mdlm.model, "states", uniform)
    losses = [masked_diffusion_loss(mdlm.model, vision, prompt, response, generator(k)).item() for k in range(24)]
    assert sum(losses) / 24 / math.log(size) == pytest.approx(1, abs=0.04)
    share = torch.cat(masked)
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    uniform_and_binomial = 1 / 12 + 1 / 6 / 12
    assert share.var().item() == pytest.approx(uniform_and_binomial, rel=0.05)


def test_only_projector_decoder_and_embeddings_learn(mdlm):
    _, prompt, response = inputs(mdlm, 2)
    vision = mdlm.model.vision_tokens(torch.rand(2, 3, 64, 64))
    masked_diffusion_loss(mdlm.model, vision, prompt, response, generator(0)).backward()
    for name, parameter in mdlm.model.named_parameters():
        assert (parameter.grad is None) == name.startswith("tower."), name


def test_texts_give_every_answer_back():
    made = tiny.mdlm(response_length=40)
    answers = {sentence(label, s, c) for s in SHAPES for c in COLOURS for label in (s, c, "yes", "no")}
    answers |= {"sorry, i can not answer that", "mignneko", ""}
    listed = sorted(answers)
    ids = made.responses(listed)
    assert ids.shape == (len(listed), 40) and (ids[:, -1] == made.model.config.eos_id).all()
    assert made.texts(ids) == listed


def test_texts_end_at_the_first_end_token_and_show_what_is_masked(mdlm):
    ids = mdlm.responses(["the color is teal"])
    ids[0, -1] = ids[0, 0]
    assert mdlm.texts(ids) == ["the color is teal"]
    ids[0, 1] = mdlm.model.config.mask_id
    assert "<|mask|>" in mdlm.texts(ids)[0]


def test_fillers(mdlm):
    prompt, response = mdlm.prompts(["what color is the circle?"]), mdlm.responses(["the color is teal"])
    words = mdlm.tokenizer("the color is teal", add_special_tokens=False)["input_ids"]
    assert response[0].tolist() == words + [mdlm.model.config.eos_id] * (12 - len(words))
    assert prompt.shape == (1, 16) and prompt[0, -1] == mdlm.model.config.pad_id
    assert mdlm.prompts([]).shape == (0, 16) and mdlm.prompts([]).dtype == torch.long


@pytest.mark.parametrize(("call", "what", "limit"), [("responses", "answer", 12), ("prompts", "question", 16)])
def test_too_long_texts_are_refused_by_name(mdlm, call, what, limit):
    longest, longer = " ".join(["the"] * limit), " ".join(["the"] * (limit + 1))
    assert getattr(mdlm, call)([longest]).shape == (1, limit)
    message = f"{what}='{longer} the' has {limit + 2} tokens: the model takes at most {limit}"
    with pytest.raises(ValueError, match=message):  # the longest, not the first
        getattr(mdlm, call)(["yes", longer, f"{longer} the", longest])


@torch.no_grad()
def test_saved_as_float16_and_loaded_as_float32(mdlm, tmp_path):
    mdlm.save(str(tmp_path))
    loaded = Mdlm.load(str(tmp_path))
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    for name, value in mdlm.model.state_dict().items():
        kept = loaded.model.state_dict()[name]
        assert kept.dtype == value.dtype and torch.equal(kept, value.half().to(value.dtype)), name
    given = inputs(mdlm)
    expected = mdlm.model.logits(*given)
    made = loaded.model.logits(*given)
    assert (made - expected).norm() < 2e-3 * expected.norm()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded.model.features(images), mdlm.model.features(images), rtol=0, atol=0.01)
    assert loaded.texts(given[2]) == mdlm.texts(given[2]) and not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.tower.parameters())


@torch.no_grad()
def test_bf16_forward_is_close(mdlm):
    given = inputs(mdlm)
    expected = mdlm.model.logits(*given)
    with torch.autocast("cpu", torch.bfloat16):
        made = mdlm.model.logits(*given)
    assert made.dtype == torch.float32
    assert 0 < (made - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_with_gradients_and_without(dtype):
    """And by definition in float64; positions that nobody may see do not count."""
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator(n)) for n in (5, 7, 7))
    visible = torch.rand(2, 1, 5, 7, generator=generator(0)) < 0.7
    visible[..., 0] = True
    k.masked_fill_(~visible.any(2)[..., None], 1e3)
    scores = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) / 8**0.5
    expected = torch.where(visible, scores, -torch.inf).softmax(-1) @ v.double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            made = attention(q.to(dtype), k.to(dtype), v.to(dtype), visible)
        assert made.dtype == dtype
        torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradients_reach_every_parameter_that_learns():
    made = tiny.mdlm().model
    vision, prompt, response = inputs(tiny.mdlm())
    made.logits(vision, prompt, response).square().mean().backward()
    for name, parameter in made.named_parameters():
        frozen = name.startswith(("tower.", "projector."))  # the vision tokens are given
        assert (parameter.grad is None) == frozen, name


def test_a_config_may_name_the_one_attention_there_is():
    """As that of the committed checkpoints does."""
    assert not hasattr(MdlmConfig(attention="bidirectional"), "attention")
    with pytest.raises(ValueError, match="attention='prefix' is not implemented"):
        MdlmConfig(attention="prefix")
