"""What every multimodal diffusion language model must do, whichever it is: the contract of `lib.models`.

A new adapter joins by one line in `tiny_mdlms.ADAPTERS`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import tiny
import tiny_diffusion_gemma
import tiny_lavida
import tiny_llada_v
import torch
from tiny_mdlms import ADAPTERS, ANSWERS, QUESTIONS, inputs, pictures

from lib.models.adapters import adapted
from lib.models.decoding import generate
from lib.models.diffusion_gemma import DiffusionGemma
from lib.models.ending import ENDS
from lib.models.loading import load_mdlm
from lib.models.mdlm import Mdlm
from lib.runtime.seeds import generator
from lib.saliency.by_name import directional
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import mask_top
from lib.settings.sections import Estimator
from lib.tasks.questions import Questions, hide, questions, respond


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(request, tmp_path_factory) -> Mdlm:
    return ADAPTERS[request.param](tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def test_shapes(adapter):
    model, config = adapter.model, adapter.model.config
    vision, prompt, response = inputs(adapter)
    features = model.features(pictures(adapter))
    assert vision.shape == (2, config.vision_length, model.mask_embedding.numel())
    assert features.shape[2] == model.tower.config.hidden_size == config.vision_features
    assert model.project(features).equal(vision)
    logits = model.logits(vision, prompt, response)
    assert response.shape == (2, config.response_length) == logits.shape[:2]
    assert logits.dtype == torch.float32 and logits.shape[2] == config.vocab_size
    if hasattr(model, "head"):
        states = model.states(vision, prompt, response)
        torch.testing.assert_close(model.head(states).float(), logits)
    assert adapter.texts(response) == ANSWERS
    assert config.mask_id not in prompt and config.mask_id not in response


@torch.no_grad()
def test_logits_of_one_sample_depend_on_no_other(adapter):
    vision, prompt, response = inputs(adapter)
    together = adapter.model.logits(vision, prompt, response)
    alone = adapter.model.logits(vision[1:], prompt[1:], response[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)


def test_a_masked_vision_token_has_no_influence_and_the_others_keep_theirs(adapter):
    """By the gradient, and by putting another token in its place; hiding a token as itself changes nothing."""
    vision, prompt, response = inputs(adapter)
    masked = torch.zeros(vision.shape[:2], dtype=torch.bool)
    masked[0, 3] = masked[1, 0] = True
    embedding, model = adapter.model.mask_embedding.detach(), adapter.model
    with torch.no_grad():
        before = model.logits(vision, prompt, response)
        itself = model.logits(hide(vision, masked, vision[0, 3])[:1], prompt[:1], response[:1])
        hidden = model.logits(hide(vision, masked, embedding), prompt, response)
        other = torch.where(masked[..., None], vision.roll(1, -1), vision)
        torch.testing.assert_close(itself, before[:1], rtol=0, atol=1e-4)
        assert model.logits(hide(other, masked, embedding), prompt, response).equal(hidden)
        assert (model.logits(other, prompt, response) - before).abs().amax((1, 2)).min() > 1e-4
        assert (hidden - before).abs().amax((1, 2)).min() > 1e-4
    token = vision.clone().requires_grad_()
    model.logits(hide(token, masked, embedding), prompt, response).square().sum().backward()
    model.zero_grad()
    influence = token.grad.abs().amax(2)
    assert (influence[masked] == 0).all() and (influence[~masked] > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_decodes_to_what_its_logits_say_one_token_at_a_time_and_many(adapter, threshold):
    """Every position is filled, with no mask token, and again the same.

    Where the model fills in mask tokens of its vocabulary, the full logits say so, too.
    """
    config = adapter.model.config
    vision, prompt, _ = inputs(adapter)
    vision = hide(vision, torch.arange(vision.shape[1]).expand(2, -1) < 2, adapter.model.mask_embedding)
    blank = torch.full((2, config.response_length), config.mask_id)
    everywhere, length = torch.ones_like(blank, dtype=torch.bool), config.response_length
    settings = {"steps": length, "block_length": length, "mask_id": config.mask_id, "threshold": threshold}
    never = torch.tensor(getattr(config, "forbidden", []), dtype=torch.long)

    def full(tokens):
        return adapter.model.logits(vision, prompt, tokens).index_fill(-1, never, -torch.inf)

    def decoded():
        return generate(adapter.model.response_logits(vision, prompt), blank, everywhere, **settings)

    made = decoded()
    assert (made != config.mask_id).all() and made.equal(decoded())
    if config.mask_id < config.vocab_size:
        assert made.equal(generate(full, blank, everywhere, **settings))
    assert len(adapter.texts(made)) == 2


def test_saliency(adapter):
    """The estimate is near the exact score, which no vision token lacks."""
    vision, prompt = (part[:1] for part in inputs(adapter)[:2])
    exact = fisher_jacobian(adapter.model, vision, prompt, exact=True)
    made = fisher_jacobian(adapter.model, vision, prompt, probes=32)
    assert made.shape == vision.shape[:2] and (exact > 0).all()
    assert ((made - exact).norm(dim=1) < 0.5 * exact.norm(dim=1)).all()
    assert (mask_top(made, 0.5).sum(1) == vision.shape[1] // 2).all()


@torch.no_grad()
def test_absent_fill_is_seen_by_none(adapter, monkeypatch):
    """The logits of an answer are those that it has in a response with no room behind it."""
    vision, prompt, response = inputs(adapter)
    monkeypatch.setattr(adapter, "fill", "absent")
    if isinstance(adapter, DiffusionGemma):
        with pytest.raises(ValueError, match="fill='absent' must be 'learnt' for DiffusionGemma"):
            adapter.targets(response)
        return
    targets = adapter.targets(response)
    full = adapter.model.logits(vision, prompt, response)
    found = adapter.model.logits(vision, prompt, targets)
    for k, length in enumerate((targets >= 0).sum(1).tolist()):
        assert length < response.shape[1] and targets[k, length - 1] == adapter.model.config.eos_id
        alone = adapter.model.logits(vision[k : k + 1], prompt[k : k + 1], response[k : k + 1, :length])[0]
        torch.testing.assert_close(found[k, :length], alone, rtol=0, atol=1e-4)
        assert (full[k, :length] - alone).abs().max() > 1e-4


@pytest.mark.parametrize("threshold", [1.0, 0.05])
@pytest.mark.parametrize("end", ENDS)
def test_answers_end_as_is_said(adapter, monkeypatch, end, threshold):
    """By logits to which so much is added that the end token is the likeliest of some positions, and not of all."""
    config, asked = adapter.model.config, asked_of(adapter)
    free = adapter.model.response_logits

    def tempted(vision, prompt):
        source = free(vision, prompt)
        plain = source.logits_at

        def logits_at(tokens, rows, positions):
            logits = plain(tokens, rows, positions)
            most = logits.amax(-1)
            logits[..., config.eos_id] = torch.where(positions % 3 == 2, most + 5, most - 5)
            return logits

        source.logits_at = logits_at
        return source

    monkeypatch.setattr(adapter.model, "response_logits", tempted)
    monkeypatch.setattr(adapter, "end", end)
    tokens, probability = respond(adapter, asked, threshold)
    is_end = tokens == config.eos_id
    assert config.mask_id not in tokens and tokens.shape == (2, config.response_length)
    if end == "suppressed":
        assert not is_end.any()
        return
    assert is_end[:, 2::3].all()
    place = torch.arange(config.response_length)
    if end == "stop":
        assert (is_end.int().argmax(1) == 2).all() and (threshold < 1 or (probability[:, 3:] == 1).any())
    else:
        assert not is_end[:, place % 3 != 2].any()


def asked_of(adapter) -> Questions:
    with torch.no_grad():
        features = adapter.model.features(pictures(adapter))
    table = pd.DataFrame({"image": [0, 1], "question": QUESTIONS, "answer": ANSWERS})
    given = torch.arange(2), adapter.prompts(QUESTIONS), adapter.responses(ANSWERS), ANSWERS, table
    return Questions(features, *given)


def mean_loss(mdlm: Mdlm):
    images = pictures(mdlm)
    _, prompt, response = inputs(mdlm)

    def loss():
        vision = mdlm.model.vision_tokens(images)
        return torch.stack([mdlm.loss(mdlm.model, vision, prompt, response, generator(k)) for k in range(2)]).mean()

    return loss


def test_the_projector_alone_can_be_trained(adapter, tmp_path):
    adapter.save(str(tmp_path))
    trained = load_mdlm(str(tmp_path))
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    required = [parameter.requires_grad for parameter in trained.model.parameters()]
    with adapted(trained.model, None, 0, "projector"):
        learning = [parameter for parameter in trained.model.parameters() if parameter.requires_grad]
        optimizer, loss = torch.optim.AdamW(learning, lr=1e-2), mean_loss(trained)
        for _ in range(2):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    changed = {name for name, value in trained.model.state_dict().items() if not value.equal(before[name])}
    assert changed and all("projector" in name or "embed_vision" in name for name in changed)
    assert [parameter.requires_grad for parameter in trained.model.parameters()] == required


def test_fine_tuning_lowers_the_loss_and_leaves_the_tower_alone(adapter, tmp_path):
    adapter.save(str(tmp_path))
    trained = load_mdlm(str(tmp_path))
    model = trained.model
    kept = {name: value.clone() for name, value in model.tower.state_dict().items()}
    loss = mean_loss(trained)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=4e-3)
    before = loss().item()
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * before
    assert all(value.equal(kept[name]) for name, value in model.tower.state_dict().items())


@torch.no_grad()
def test_saved_and_loaded_again_it_says_the_same(adapter, tmp_path):
    """Once rounded to half precision on disk, to the bit; the tower stays frozen."""
    adapter.save(str(tmp_path / "one"))
    first = load_mdlm(str(tmp_path / "one"))
    first.save(str(tmp_path / "two"))
    second = load_mdlm(str(tmp_path / "two"))
    assert type(first) is type(adapter) and type(second) is type(adapter)
    given = inputs(first)
    logits = first.model.logits(*given)
    assert second.model.logits(*given).equal(logits)
    expected = adapter.model.logits(*given)
    assert 0 < (logits - expected).norm() < 0.05 * expected.norm()
    assert second.texts(given[2]) == ANSWERS and second.prompts(QUESTIONS).equal(given[1])
    assert not any(parameter.requires_grad for parameter in second.model.tower.parameters())
    learning = {name: parameter.requires_grad for name, parameter in first.model.named_parameters()}
    assert learning == {name: parameter.requires_grad for name, parameter in second.model.named_parameters()}
    assert any(learning.values())


@torch.no_grad()
def test_bf16_is_close(adapter):
    given = inputs(adapter)
    expected = adapter.model.logits(*given)
    with torch.autocast("cpu", torch.bfloat16):
        made = adapter.model.logits(*given)
    assert made.dtype == torch.float32
    assert 0 < (made - expected).norm() < 0.1 * expected.norm()


def test_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ValueError, match="model_type='llava' of .* must be one of mdlm, llava_llada"):
        load_mdlm(str(tmp_path))


ROOM = {"prompt_length": 80, "picture": [64, 64]}  # pictures that are cut into tiles
PUBLISHED: dict[str, tuple[Callable[[Path], str], dict]] = {
    "llada-v": (tiny_llada_v.write, ROOM | {"response_length": 80}),
    "lavida": (tiny_lavida.write, ROOM | {"response_length": 80}),
    "diffusion-gemma": (tiny_diffusion_gemma.write, tiny_diffusion_gemma.settings() | ROOM | {"response_length": 80}),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def half(request, tmp_path_factory) -> Mdlm:
    """As the published models are loaded: bfloat16 weights, whether there is autocast or not."""
    write, settings = PUBLISHED[request.param]
    return load_mdlm(write(tmp_path_factory.mktemp("half")), dtype=torch.bfloat16, **settings)


def test_a_model_in_bfloat16_takes_what_one_in_float32_takes(half):
    given = inputs(half)
    assert given[0].dtype == torch.bfloat16 and half.model.logits(*given).dtype == torch.float32
    assert half.model.project(half.model.features(pictures(half)).float()).equal(given[0])
    assert half.model.logits(given[0].float(), *given[1:]).equal(half.model.logits(*given))
    assert (fisher_jacobian(half.model, *given[:2], probes=2) > 0).all()


def test_tokens_that_see_a_part_of_the_picture(half):
    """None see nothing, all of the whole picture see everything, and only the first ones its first pixels."""
    whole, length = half.model.whole, half.model.config.vision_length
    mask = torch.zeros(64, 64)
    assert half.model.tokens_of(mask).shape == (length,) and not half.model.tokens_of(mask).any()
    assert half.model.tokens_of(mask + 1)[:whole].all()
    mask[:6, :6] = 1
    first = half.model.tokens_of(mask)[:whole]
    assert first[0] and not first[-1]


def test_the_defence_asks_scores_and_masks(half):
    """Features of questions' pictures, saliency, answers with half of the vision tokens masked."""
    vqa = tiny.few_easyvqa("test", 2)
    data = questions(half, vqa, vqa.table.iloc[:3])
    assert half.texts(data.responses) == data.answers
    scores = directional(half, data, estimator=Estimator(probes=1), batch=2, seed=0)
    assert scores.shape == (3, half.model.config.vision_length) and (scores > 0).all()
    plain, hidden = (respond(half, data, 0.01, masked=masked) for masked in (None, mask_top(scores, 0.5)))
    assert plain.tokens.shape == data.responses.shape and not plain.probability.equal(hidden.probability)


def test_checkpointing_of_activations_changes_no_gradient(half):
    given, gradients, objective = inputs(half), [], half.loss
    layers = getattr(half.model.model, "decoder", half.model.model).layers
    half.model.train()
    for on in (False, True):
        half.model.zero_grad()
        if on:
            half.model.activation_checkpointing_enable()
        objective(half.model, *given, generator(0)).backward()
        gradients.append(layers[0].mlp.up_proj.weight.grad.clone())
    assert any(getattr(module, "gradient_checkpointing", False) for module in layers)
    assert gradients[0].abs().max() > 0 and gradients[0].equal(gradients[1])


@pytest.mark.parametrize("name", ["data/checkpoints/mdml", "/nowhere/at-all", "README.md/"])
def test_a_name_that_is_no_folder_and_no_hub_id_is_refused_without_asking_the_hub(name):
    with pytest.raises(ValueError, match=f"'{name}' must be a folder that is there, or a hub id"):
        load_mdlm(name)
