"""LaViDa: its names on disk, pooling, prefix attention against transformers' own Llama, masks, quotas."""

from itertools import pairwise, product
from pathlib import Path

import pytest
import tiny_lavida
import tiny_llada_v
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from lib.models.decoding import generate
from lib.models.lavida import Lavida, LavidaConfig, complementary_masking_loss, decode_shifted, shifted_quotas
from lib.models.llada import IMAGE
from lib.models.llada_v import LladaV
from lib.models.loading import load_mdlm
from lib.models.mdlm import FILLS
from lib.runtime.seeds import generator

QUESTIONS = ["is it red?", "is it blue, or not so?"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Lavida:
    return tiny_lavida.lavida(tmp_path_factory.mktemp("lavida"))


def inputs(made: Lavida, length: int | None = None):
    config, draw = made.model.config, generator(1)
    vision = torch.randn(2, config.vision_length, config.hidden_size, generator=draw)
    response = torch.randint(6, 200, (2, length or config.response_length), generator=draw)
    return vision, made.prompts(QUESTIONS), response


@torch.no_grad()
@pytest.mark.parametrize("attention", ["prefix", "bidirectional"])
def test_logits_and_attention_are_those_of_a_llama_whose_prefix_does_not_see_the_response(tmp_path, attention):
    """The reference is dense, without padding, row by row."""
    made = tiny_lavida.lavida(tmp_path, attention=attention)
    shape = {key: value for key, value in tiny_llada_v.config().items() if key.startswith(("num_", "hidden", "inter"))}
    config = LlamaConfig(**shape, vocab_size=320, rms_norm_eps=1e-5, rope_theta=500000.0, attn_implementation="eager")
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict({name: tiny_lavida.weights()[tiny_lavida.published(name)] for name in llama.state_dict()})
    vision, prompt, response = inputs(made)
    logits = made.model.logits(vision, prompt, response)
    shown = made.model.response_attention(vision, prompt, response, lambda weight: weight.mean((1, 2)))
    received = torch.stack(shown)[..., : vision.shape[1]]
    for row in range(2):
        words = prompt[row][prompt[row] != made.model.config.pad_id]
        place = words.tolist().index(IMAGE)
        embed = llama.model.embed_tokens
        before = [embed(words[:place]), vision[row], embed(words[place + 1 :])]
        x = torch.cat([*before, embed(response[row])])[None]
        total, length = x.shape[1], response.shape[1]
        hidden = torch.zeros(1, 1, total, total)
        if attention == "prefix":
            hidden[..., : total - length, total - length :] = -torch.inf
        expected = llama(inputs_embeds=x, attention_mask=hidden, output_attentions=True)
        torch.testing.assert_close(logits[row], expected.logits[0, -length:], rtol=1e-4, atol=1e-4)
        seen = torch.cat(expected.attentions)[:, :, -length:, place : place + vision.shape[1]].mean((1, 2))
        torch.testing.assert_close(received[:, row], seen, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("pooling", "side"), [("bilinear", 2), ("average", 1)])
def test_views_are_pooled_one_by_one(tmp_path, pooling, side):
    """A whole picture and two tiles of 3 × 3 patches, each pooled, the tiles' rows ended by a learnt token."""
    made = tiny_lavida.lavida(tmp_path, mm_spatial_pool_mode=pooling, picture=[42, 84])
    model = made.model
    features = torch.randn(1, 27, tiny_lavida.VISION["hidden_size"], generator=generator(0))
    tokens = model.model.mm_projector(features).view(3, 3, 3, -1)  # [view, row, column, dim]
    if pooling == "average":
        pooled = tokens[:, :2, :2].mean((1, 2))[:, None, None]
    else:  # centres of two cells over three: at ¼ and 1¾
        mix = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]])
        pooled = torch.einsum("ar,bc,vrcd->vabd", mix, mix, tokens)
    end = model.model.image_newline.expand(side, 1, -1)
    rows = torch.cat([pooled[1], pooled[2], end], 1)
    expected = torch.cat([pooled[0].flatten(0, 1), rows.flatten(0, 1)])[None]
    assert model.config.vision_length == expected.shape[1] == side**2 + side * (2 * side + 1)
    torch.testing.assert_close(model.project(features), expected, rtol=1e-4, atol=1e-4)


def test_published_sizes():
    """Five views of 27 × 27 tokens, pooled to 14 × 14: 980, and a token at the end of each of 28 rows."""
    assert LavidaConfig(picture=[768, 768]).vision_length == 980 + 28
    config = LavidaConfig(d_model=64, n_layers=3, n_heads=2, mlp_hidden_size=99, max_sequence_length=7)
    decoder = config.decoder()
    assert (decoder.hidden_size, decoder.num_hidden_layers, decoder.num_attention_heads) == (64, 3, 2)
    assert (decoder.num_key_value_heads, decoder.intermediate_size, decoder.max_position_embeddings) == (2, 99, 7)


def test_saved_under_the_published_names(made, tmp_path):
    made.save(str(tmp_path))
    kept = load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in kept.items()} == {
        name: value.shape for name, value in tiny_lavida.weights().items()
    }
    assert all(kept[name].equal(value.to(torch.bfloat16)) for name, value in tiny_lavida.weights().items())


def test_the_config_tells_it_from_llada_v(made, tmp_path):
    assert type(load_mdlm(tiny_llada_v.write(tmp_path / "v"))) is LladaV
    made.save(str(tmp_path / "lavida"))
    assert type(load_mdlm(str(tmp_path / "lavida"))) is Lavida


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"block_type": "sequential"}, "block_type='sequential' is not implemented for LaViDa: it must be 'llama'"),
        ({"weight_tying": True}, "weight_tying=True is not implemented for LaViDa: it must be False"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode='max' must be one of bilinear, average"),
        ({"attention": "causal"}, "attention='causal' must be one of bidirectional, prefix"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type='qformer' is not implemented for LaViDa"),
    ],
)
def test_refuses_what_is_not_implemented(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        LavidaConfig(**change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.transformer.blocks.1.attn_out.weight": None}, "missing: model.layers.1.self_attn.o_proj.weight"),
        ({"model.transformer.blocks.2.q_proj.weight": torch.ones(1)}, "unknown: model.layers.2.self_attn.q_proj"),
        ({"model.transformer.ln_f.weight": torch.ones(31)}, r"of another shape: model.norm.weight \[31\] for \[32\]"),
    ],
)
def test_every_weight_is_accounted_for(tmp_path, change, sentence):
    stored = {name: value for name, value in (tiny_lavida.weights() | change).items() if value is not None}
    folder = tiny_lavida.write(tmp_path, stored=stored)
    with pytest.raises(ValueError, match=f"the weights of .* are not LaViDa's by its config.json: {sentence}"):
        load_mdlm(folder)


def test_answers_end_their_turn_and_then_the_text(made):
    config = made.model.config
    (row,) = made.responses(["red"]).tolist()
    words = made.tokenizer("red", add_special_tokens=False)["input_ids"]
    rest = [config.pad_id] * (config.response_length - len(words) - 1)
    assert row == [*words, config.eos_id, *rest]


@pytest.mark.parametrize("fill", FILLS)
def test_the_loss_learns_every_token_once(made, monkeypatch, fill):
    model, shown = made.model, []
    monkeypatch.setattr(made, "fill", fill)
    vision, prompt, response = inputs(made)
    response[0, 4] = model.config.eos_id
    response = made.targets(response)
    present, ids = response >= 0, response.clamp(min=0)
    assert present.all() == (fill == "learnt")
    states = model.states

    def recorded(vision, prompt, noisy):
        shown.append(noisy)
        return states(vision, prompt, noisy)

    monkeypatch.setattr(model, "states", recorded)
    with torch.no_grad():
        losses = [complementary_masking_loss(model, vision, prompt, response, generator(k)) for k in range(20)]
    monkeypatch.setattr(model, "states", states)
    shares = []
    for loss, noisy in zip(losses, shown, strict=True):
        one, two = (noisy == model.config.mask_id).chunk(2)
        assert one.equal(~two & present) and one.any(1).all() and not (two & ~present).any()
        assert noisy[~torch.cat([one, two])].equal(response.repeat(2, 1)[~torch.cat([one, two])])
        shares.append(one[present].double().mean())
        with torch.no_grad():
            logits = model.logits(vision.repeat(2, 1, 1), prompt.repeat(2, 1), noisy)
        likelihood = logits.log_softmax(-1).gather(2, ids.repeat(2, 1)[..., None])[..., 0]
        each = (likelihood[:2] * one + likelihood[2:] * two).sum(1) / present.sum(1)
        expected = -each.mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0.3 < sum(shares) / len(shares) < 0.7 and max(shares) - min(shares) > 0.4


def test_quotas_fill_the_block_one_at_least_a_step():
    for positions, steps, shift in product((1, 5, 32, 64), (1, 4, 31, 100), (0.1, 1 / 3, 1, 3, 10)):
        quotas = shifted_quotas(positions, steps, shift)
        assert sum(quotas) == positions and min(quotas) >= 1 and len(quotas) == min(steps, positions)


def test_quotas_shift_to_the_start_or_the_end():
    """Worked out by hand for 32 tokens in 8 steps: αt / (1 + (α − 1) t) with t = k/8, times 32, rounded down."""
    assert shifted_quotas(32, 8, 1) == [4] * 8
    assert shifted_quotas(32, 8, 3) == [2, 2, 2, 2, 4, 4, 7, 9]
    few_last = shifted_quotas(64, 8, 1 / 3)
    assert few_last[0] > few_last[3] > few_last[-1] and all(a >= b - 1 for a, b in pairwise(few_last))
    for wrong in ({"steps": 0, "shift": 1}, {"steps": 1, "shift": 0}):
        with pytest.raises(ValueError, match="steps=.* must be at least 1 and shift=.* above 0"):
            shifted_quotas(8, **wrong)


@torch.no_grad()
def test_decoding_fills_the_surest_by_those_quotas(made):
    """With as many steps as tokens it is the plain rule; with fewer each step fills what its quota says."""
    vision, prompt, _ = inputs(made)
    config = made.model.config
    length = config.response_length
    blank = torch.full((2, length), config.mask_id)
    sizes = {"steps": length, "block_length": 5, "mask_id": config.mask_id}
    plain = generate(made.model.response_logits(vision, prompt), blank, blank == config.mask_id, **sizes)
    decoded = decode_shifted(made.model.response_logits(vision, prompt), blank, **sizes)
    assert decoded.tokens.equal(plain) and (decoded.tokens != config.mask_id).all()
    assert ((decoded.probability > 0) & (decoded.probability < 1)).all()

    logits, left = made.model.response_logits(vision, prompt), []
    given = logits.logits_at

    def counted(tokens, rows, positions):
        left.append((tokens == config.mask_id).sum(1).tolist())
        return given(tokens, rows, positions)

    logits.logits_at = counted
    decode_shifted(logits, blank, **(sizes | {"steps": 3, "block_length": length}), shift=3)
    quotas = shifted_quotas(length, 3, 3)
    assert left == [[length] * 2, [length - quotas[0]] * 2, [quotas[2]] * 2]


def test_a_checkpoint_in_the_layout_loads_from_its_folder(tmp_path):
    folder = tiny_lavida.write(tmp_path)
    assert sorted(path.suffix for path in Path(folder).glob("model*")) == [".safetensors"]
    assert type(load_mdlm(folder)) is Lavida
