"""What later layers do not see: beside layers run by hand, on the tokens that are left or under a mask of their own."""

import pytest
import tiny
import tiny_lavida
import tiny_llada_v
import torch
from tiny import noise, pictures

from lib.models.unseen import Unseen, UnseenLogits, leaving_out, response_logits
from lib.runtime.seeds import generator
from lib.saliency.masking import masked_response
from lib.tasks.questions import respond


@pytest.fixture(scope="module")
def mdlm():
    return tiny.lively(tiny.mdlm(layers=3))


def hidden_tokens(rows=3, tokens=64):
    hidden = torch.rand(rows, tokens, generator=generator(2)) < 0.3
    hidden[0] = False  # one sample sees all
    return hidden


def given(mdlm, rows=3):
    prompts = torch.full((rows, 16), 5)
    prompts[1:, 7:] = mdlm.model.config.pad_id
    with torch.no_grad():
        vision = mdlm.model.project(noise(rows, 64, 32))
    return vision, prompts, masked_response(mdlm.model, vision)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_below_see_all_and_those_above_what_is_left(mdlm, layer):
    """Row by row, without the hidden tokens and the padding from that layer on."""
    model, hidden = mdlm.model, hidden_tokens()
    vision, prompts, response = given(mdlm)
    with leaving_out(model, Unseen(layer, hidden)):
        found = model.logits(vision, prompts, response)
    for row in range(3):
        x, seen = model.embed_context(vision[row, None], prompts[row, None])
        x = torch.cat([x, model.embed_response(response[row, None])], 1)
        seen = torch.cat([seen, torch.ones_like(response[row, None], dtype=torch.bool)], 1)
        x, everything = x[:, seen[0]], torch.ones(1, 1, 1, int(seen.sum()), dtype=torch.bool)
        for block in model.blocks[:layer]:
            x = block(x, everything)
        x = torch.cat([x[:, :64][:, ~hidden[row]], x[:, 64:]], 1)
        for block in model.blocks[layer:]:
            x = block(x, everything[..., : x.shape[1]])
        expected = model.head(model.norm(x[:, -response.shape[1] :]))[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
    assert not any(block._forward_pre_hooks for block in model.blocks)
    usual = model.logits(vision, prompts, response)
    torch.testing.assert_close(found[0], usual[0])
    assert not torch.allclose(found[1:], usual[1:], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["LLaDA-V", "LaViDa prefix", "LaViDa bidirectional"])
def test_published_models_layers_leave_tokens_out_too(tmp_path, kind, layer):
    """Their layers one by one, each under its own mask."""
    name, _, attention = kind.partition(" ")
    made = tiny_llada_v.llada_v(tmp_path) if name == "LLaDA-V" else tiny_lavida.lavida(tmp_path, attention=attention)
    model = made.model
    count, prompt = model.config.vision_length, made.prompts(["what is it?", "is it?"])
    vision = torch.randn(2, count, model.config.hidden_size, generator=generator(1))
    hidden = torch.zeros(2, count, dtype=torch.bool)
    hidden[1, ::2] = True
    response = masked_response(model, vision)
    x, places, seen = model.joined(vision, prompt, response)
    visible = seen[:, None, None].expand(-1, 1, x.shape[1], -1).clone()
    if attention == "prefix":
        visible[:, :, : -response.shape[1], -response.shape[1] :] = False
    turn = model.model.rotary_emb(x, places)
    for k, block in enumerate(model.model.layers):
        if k == layer:
            visible[..., :count] &= ~hidden[:, None, None]
        x = block(x, attention_mask=visible, position_ids=places, position_embeddings=turn)
    expected = model.head(model.model.norm(x)[:, -response.shape[1] :]).float()
    expected[..., model.config.forbidden] = -torch.inf
    source = response_logits(model, vision, prompt, Unseen(layer, hidden))
    every = torch.arange(response.shape[1]).expand(2, -1)
    found = source.logits_at(response, torch.arange(2), every)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    usual = model.response_logits(vision, prompt).logits_at(response, torch.arange(2), every)
    torch.testing.assert_close(found[0], usual[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1], usual[1], atol=1e-3)


def test_rows_and_positions_are_those_asked_for(mdlm):
    vision, prompts, response = given(mdlm)
    source = UnseenLogits(mdlm.model, vision, prompts, Unseen(1, hidden_tokens()))
    whole = source.logits_at(response, torch.arange(3), torch.arange(12).expand(3, -1))
    rows, positions = torch.tensor([0, 2]), torch.tensor([[3, 7], [0, 11]])
    found = source.logits_at(response, rows, positions)
    torch.testing.assert_close(found, whole[rows[:, None], positions])


def test_nothing_unseen_is_answered_as_ever_and_batches_do_not_matter(mdlm):
    data = pictures(noise(5, 64, 32))
    usual = respond(mdlm, data, 0.5)
    none = torch.zeros(5, 64, dtype=torch.bool)
    assert torch.equal(respond(mdlm, data, 0.5, unseen=Unseen(0, none)).tokens, usual.tokens)
    some = none.clone()
    some[3] = True
    found = respond(mdlm, data, 0.5, unseen=Unseen(0, some)).tokens
    assert torch.equal(respond(mdlm, data, 0.5, unseen=Unseen(0, some), batch=2).tokens, found)
    changed = (found != usual.tokens).any(1)
    assert changed.tolist() == [False, False, False, True, False]
    empty = respond(mdlm, data[:0], 0.5, unseen=Unseen(0, none[:0]))
    assert empty.tokens.shape == (0, 12)
