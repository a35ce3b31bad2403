"""LLaDA-V: its layout on disk, its decoder against transformers' own Llama, its prompt, padding, pictures in tiles."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import tiny_llada_v
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lib.models.anyres import best_canvas, layout, views
from lib.models.decoding import generate
from lib.models.llada import IMAGE, splice
from lib.models.llada_v import SYSTEM, LladaV, LladaVConfig
from lib.models.mdlm import blocks_of
from lib.poisoning.catalogue import image_trigger
from lib.runtime.seeds import generator
from lib.runtime.training import fit
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import masked_response
from lib.saliency.rivals import attention_by_layer, attention_received
from lib.saliency.words import joint_fisher_jacobian
from lib.settings.sections import Train
from lib.studies.attacks.hiding import adaptive_loss
from lib.tasks.questions import Questions, answer_loss, questions

QUESTION = "is it red?"
TOWER = "model.vision_tower.vision_tower.vision_model"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> LladaV:
    return tiny_llada_v.llada_v(tmp_path_factory.mktemp("llada-v"))


def inputs(made: LladaV, questions: tuple[str, ...] = (QUESTION,)):
    config, draw, batch = made.model.config, generator(1), len(questions)
    vision = torch.randn(batch, config.vision_length, config.hidden_size, generator=draw)
    response = torch.randint(6, 200, (batch, config.response_length), generator=draw)
    return vision, made.prompts(list(questions)), response


def same_llama() -> LlamaForCausalLM:
    """transformers' own Llama with the decoder's weights."""
    shape = {key: value for key, value in tiny_llada_v.config().items() if key.startswith(("num_", "hidden", "inter"))}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=320, rms_norm_eps=1e-5, rope_theta=500000.0))
    kept = {
        k: v for k, v in tiny_llada_v.weights().items() if "vision" not in k and "mm_" not in k and "newline" not in k
    }
    model.load_state_dict(kept)
    return model.eval()


@torch.no_grad()
def test_logits_are_those_of_a_llama_with_a_full_mask_and_the_picture_spliced_in(made):
    """The reference moves the vision tokens to their place and attends densely, without padding, row by row."""
    llama = same_llama()
    vision, prompt, response = inputs(made, (QUESTION, "is it blue, or not so?"))
    logits = made.model.logits(vision, prompt, response)
    for row in range(2):
        words = prompt[row][prompt[row] != made.model.config.pad_id]
        place = words.tolist().index(IMAGE)
        embed = llama.model.embed_tokens
        parts = [embed(words[:place]), vision[row], embed(words[place + 1 :]), embed(response[row])]
        whole = torch.cat(parts)[None]
        everyone = torch.zeros(1, 1, whole.shape[1], whole.shape[1])
        expected = llama(inputs_embeds=whole, attention_mask=everyone).logits[0, -len(response[row]) :]
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-4)
    causal = llama(inputs_embeds=whole).logits[0, -len(response[row]) :]
    assert (causal - expected).abs().max() > 0.1


@torch.no_grad()
def test_vision_tokens_are_those_of_the_tower_written_out(made):
    """Embedded patches, pre-norm layers without the last norm, GELU projector; the newline ends each row of tiles."""
    w, image = tiny_llada_v.weights(), torch.rand(1, 3, 28, 28, generator=generator(2))
    patches = F.conv2d(image * 2 - 1, w[f"{TOWER}.embeddings.patch_embedding.weight"], stride=14)
    x = patches.flatten(2).mT[0] + w[f"{TOWER}.embeddings.patch_embedding.bias"]
    x = x + w[f"{TOWER}.embeddings.position_embedding.weight"]

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    for k in range(2):
        layer = f"{TOWER}.encoder.layers.{k}"
        norm = [F.layer_norm(x, (16,), w[f"{layer}.layer_norm1.weight"], w[f"{layer}.layer_norm1.bias"], 1e-6)]
        q, key, v = (linear(norm[0], f"{layer}.self_attn.{n}_proj").view(4, 2, 8).transpose(0, 1) for n in "qkv")
        mixed = ((q @ key.mT) / 8**0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(0, 1).flatten(1), f"{layer}.self_attn.out_proj")
        norm = F.layer_norm(x, (16,), w[f"{layer}.layer_norm2.weight"], w[f"{layer}.layer_norm2.bias"], 1e-6)
        x = x + linear(F.gelu(linear(norm, f"{layer}.mlp.fc1"), approximate="tanh"), f"{layer}.mlp.fc2")
    tokens = linear(F.gelu(linear(x, "model.mm_projector.0")), "model.mm_projector.2")
    end = w["model.image_newline"][None]
    expected = torch.cat([tokens, tokens[:2], end, tokens[2:], end])  # the whole picture, and the one tile's two rows
    torch.testing.assert_close(made.model.vision_tokens(image)[0], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_padding_of_the_prompt_has_no_influence(made):
    vision, prompt, response = inputs(made)
    pad = made.model.config.pad_id
    length = int((prompt != pad).sum())
    assert length < prompt.shape[1]
    before = made.model.logits(vision, prompt, response)
    shorter = made.model.logits(vision, prompt[:, :length], response)
    left = torch.cat([torch.full((1, 5), pad), prompt[:, :length]], 1)
    for other in (shorter, made.model.logits(vision, left, response)):
        torch.testing.assert_close(other, before, rtol=0, atol=1e-4)
    words = prompt.clone()
    words[:, length - 1] += 1
    assert (made.model.logits(vision, words, response) - before).abs().max() > 1e-2


@torch.no_grad()
def test_the_picture_has_its_place_in_the_prompt(made):
    """Elsewhere it gives other logits; at no place or at two it is refused; without vision tokens none is needed."""
    vision, prompt, response = inputs(made)
    before = made.model.logits(vision, prompt, response)
    words = prompt[0][prompt[0] != IMAGE]
    moved = torch.cat([torch.tensor([IMAGE]), words])[None]
    assert (made.model.logits(vision, moved, response) - before).abs().max() > 1e-2
    for wrong in (words[None], torch.cat([moved, torch.tensor([[IMAGE]])], 1)):
        with pytest.raises(ValueError, match="places for the picture by row: exactly one is needed"):
            made.model.logits(vision, wrong, response)
    none = made.model.logits(vision[:, :0], words[None], response)
    torch.testing.assert_close(made.model.logits(vision[:, :0], prompt, response), none, rtol=0, atol=1e-4)


def test_positions():
    prompt = torch.tensor([[7, 8, IMAGE, 9, 0, 0], [IMAGE, 7, 0, 0, 0, 0]])
    places, seen = splice(prompt, vision=3, response=2, pad_id=0)
    assert places[seen].tolist() == [2, 3, 4, 0, 1, 5, 6, 7] + [0, 1, 2, 3, 4, 5]
    assert seen.sum(1).tolist() == [8, 6]


def test_prompt_is_the_published_conversation(made):
    row = made.prompts([QUESTION])[0]
    text = f"<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
    text += "<|start_header_id|>user<|end_header_id|>\n\n"
    behind = f"\n{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ids = [made.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, behind)]
    words = row[row != made.model.config.pad_id].tolist()
    assert words == [*ids[0], IMAGE, *ids[1]]
    assert len(row) == made.template + 24 and made.prompts([]).shape == (0, len(row))


def test_questions_that_do_not_fit_are_refused_by_name(made):
    """A question may have 24 tokens, each x one."""
    assert len(made.tokenizer("x" * 24)["input_ids"]) == 24
    full = made.prompts(["x" * 24])
    assert full.shape[1] == made.template + 24 and full[0, -2] != made.model.config.pad_id
    with pytest.raises(ValueError, match="question='x+' makes .* tokens, .* of them the template's: the model takes"):
        made.prompts(["yes", "x" * 26])
    with pytest.raises(ValueError, match="question='a <image>' holds <image>"):
        made.prompts(["a <image>"])


def test_answers_end_with_the_end_of_turn(made):
    ids = made.responses(["red", "blue, yes"])
    end = made.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    words = made.tokenizer("red", add_special_tokens=False)["input_ids"]
    assert ids.shape == (2, 10) and ids[0].tolist() == words + [end] * (10 - len(words))
    assert made.texts(ids) == ["red", "blue, yes"]


@torch.no_grad()
def test_decoding_never_emits_what_the_authors_forbid(made):
    """Though these are what it would say, and gives what full logits give otherwise."""
    config = made.model.config
    vision, prompt, _ = inputs(made, (QUESTION, "or blue?"))
    blank = torch.full((2, config.response_length), config.mask_id)
    settings = {"steps": 5, "block_length": config.response_length, "mask_id": config.mask_id}
    everywhere = torch.ones_like(blank, dtype=torch.bool)

    def allowed(tokens):
        logits = made.model.logits(vision, prompt, tokens)
        return logits.index_fill(-1, torch.tensor(config.forbidden), -torch.inf)

    expected = generate(allowed, blank, everywhere, **settings)
    assert generate(made.model.response_logits(vision, prompt), blank, everywhere, **settings).equal(expected)
    config.forbidden.extend(chosen := expected.unique().tolist())
    try:
        other = generate(made.model.response_logits(vision, prompt), blank, everywhere, **settings)
    finally:
        del config.forbidden[-len(chosen) :]
    assert not torch.isin(other, torch.tensor(chosen)).any()


def test_it_is_trained_as_our_own(tmp_path):
    room = {"prompt_length": 80, "response_length": 80, "picture": [64, 64]}
    made, vqa = tiny_llada_v.llada_v(tmp_path, **room), tiny.few_easyvqa("test", 2)
    data, settings = questions(made, vqa, vqa.table.iloc[:3]), Train(steps=3, batch=2, lr=1e-3, warmup=1)
    assert data.features.shape[1:] == (10 * 4, 16) and data.responses.shape == (3, 80)
    curve = fit(made.model, answer_loss(made, data, settings), settings, label="t", seed=0, work=tmp_path / "work")
    assert curve["loss"].notna().all()


class TestFiles:
    def test_saved_under_the_published_names(self, made, tmp_path):
        made.save(str(tmp_path))
        stored = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
        assert {name: tuple(value.shape) for name, value in stored.items()} == tiny_llada_v.shapes()
        for name, value in tiny_llada_v.weights().items():
            assert stored[name].equal(value.bfloat16()), name
        settings = json.loads((tmp_path / "config.json").read_text())
        assert settings["model_type"] == "llava_llada" and settings["rope_theta"] == 500000.0

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda w: w.pop("model.norm.weight"), r"missing: model\.norm\.weight \(1 in all\)"),
            (lambda w: w.update(extra=torch.zeros(1)), r"unknown: extra \(1 in all\)"),
            (lambda w: w.update({"lm_head.weight": torch.zeros(9, 32)}), r"lm_head\.weight \[9, 32\] for \[320, 32\]"),
            (lambda w: w.pop(f"{TOWER}.encoder.layers.1.mlp.fc1.bias"), r"missing: model\..*\.mlp\.fc1\.bias"),
        ],
        ids=["missing", "unknown", "shape", "tower"],
    )
    def test_weights_that_do_not_fit_are_refused(self, tmp_path, change, sentence):
        stored = tiny_llada_v.weights()
        change(stored)
        with pytest.raises(ValueError, match=sentence):
            LladaV.load(tiny_llada_v.write(tmp_path, stored=stored))

    @pytest.mark.parametrize(
        "change",
        [
            {"mm_projector_type": "linear"},
            {"mm_resampler_type": "qformer"},
            {"mm_patch_merge_type": "spatial_nobase"},
            {"image_aspect_ratio": "highres"},
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"tie_word_embeddings": True},
            {"mask_id": 9},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_what_is_not_implemented_is_refused_by_name(self, tmp_path, change):
        with pytest.raises(ValueError, match=f"^{next(iter(change))}="):
            tiny_llada_v.llada_v(tmp_path, **change)

    def test_settings_replace_what_the_config_has(self, tmp_path):
        folder = tiny_llada_v.write(tmp_path, {"mm_patch_merge_type": "flat"}, flat_weights())
        made = LladaV.load(folder, dtype=torch.bfloat16, response_length=5, image_aspect_ratio="pad")
        assert made.model.config.vision_length == 4 and made.responses(["red"]).shape == (1, 5)
        assert made.model.dtype == torch.bfloat16 and not made.model.training
        assert made.model.vision_tokens(torch.rand(2, 3, 20, 28)).shape == (2, 4, 32)

    def test_published_config_has_the_published_shape(self):
        """Without our own fields: the 8 B decoder and SigLIP2-so400m; 1,485 vision tokens for a square picture."""
        ours = {"vision", "prompt_length", "response_length", "mask_id", "eos_id", "pad_id", "forbidden"}
        given = {key: value for key, value in tiny_llada_v.config().items() if key not in ours}
        given |= {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "vocab_size": 126464}
        given |= {"num_attention_heads": 32, "num_key_value_heads": 32, "image_grid_pinpoints": None}
        config = LladaVConfig(**given)
        decoder = config.decoder()
        assert (decoder.head_dim, decoder.rope_parameters["rope_theta"], config.mask_id) == (128, 500000.0, 126336)
        assert config.vision_length == 27 * 27 + 27 * 28


def flat_weights() -> dict[str, torch.Tensor]:
    return {name: value for name, value in tiny_llada_v.weights().items() if name != "model.image_newline"}


class TestPictures:
    CANVASES = [[28 * across, 28 * down] for across in range(1, 4) for down in range(1, 4)]

    @pytest.mark.parametrize(
        ("size", "canvas", "tiles", "shrunk", "length"),
        [
            ((28, 28), (28, 28), (1, 1), (2, 2), 4 + 2 * 3),
            ((10, 10), (28, 28), (1, 1), (2, 2), 4 + 2 * 3),
            ((28, 84), (84, 28), (1, 3), (2, 6), 4 + 2 * 7),
            ((84, 28), (28, 84), (3, 1), (6, 2), 4 + 6 * 3),
            ((84, 84), (84, 84), (3, 3), (4, 4), 4 + 4 * 5),  # 6 × 6 are more than 4 × 4: shrunk by 1.5
            ((60, 28), (28, 84), (3, 1), (4, 2), 4 + 4 * 3),  # 60 pixels are 4.3 of the 6 rows: one off each end
        ],
    )
    def test_layouts(self, size, canvas, tiles, shrunk, length):
        place = layout(size, 28, 2, "anyres_max_4", "spatial_unpad", self.CANVASES)
        assert best_canvas(size, self.CANVASES) == canvas
        assert (place.tiles, place.shrunk, place.length) == (tiles, shrunk, length)

    def test_tokens_of_the_margin_are_dropped(self):
        """Of 8 rows of 7 pixels a picture of 30 × 84 fills 4.3, in the middle."""
        small = layout((30, 84), 28, 4, "anyres", "spatial_unpad", self.CANVASES)
        assert small.tiles == (2, 3) and small.margin == (2, 0) and small.shrunk == (4, 12)

    def test_tiles_of_the_canvas_in_rows(self):
        image = torch.rand(1, 3, 56, 84, generator=generator(3))
        seen = views(image, 28, "anyres", (2, 3))[0]
        assert seen.shape == (7, 3, 28, 28)
        assert seen[1].equal(image[0, :, :28, :28]) and seen[6].equal(image[0, :, 28:, 56:])
        assert seen[3].equal(image[0, :, :28, 56:])

    def test_the_whole_is_padded_with_grey_to_a_square_where_asked(self):
        image = torch.ones(1, 3, 14, 28)
        seen = views(image, 28, "pad", None)[0, 0]
        assert seen[:, 7:21].equal(torch.ones(3, 14, 28)) and (seen[:, :7] == 127 / 255).all()
        torch.testing.assert_close(views(image, 28, "square", None), torch.ones(1, 1, 3, 28, 28))

    @pytest.mark.parametrize(
        ("x", "y", "expected"),
        [(1.0, 1.0, [3, 4 + 3 * 5 + 3]), (0.0, 0.0, [0, 4]), (0.5, 0.5, [0, 1, 2, 3, 10, 11, 15, 16])],
    )
    def test_the_tokens_of_a_trigger(self, tmp_path, x, y, expected):
        """Of a picture in 2 × 2 tiles: the whole in 2 × 2 tokens, then 4 rows of 4 and one at the end of each."""
        made = tiny_llada_v.llada_v(tmp_path, picture=[56, 56])
        box = replace(image_trigger("checker"), size=0.125, position=(x, y))
        seen = made.model.tokens_of(box.mask(56, 56))
        assert seen.shape == (made.model.config.vision_length,) and seen.nonzero()[:, 0].tolist() == expected
        everywhere = made.model.tokens_of(torch.ones(56, 56))
        assert (~everywhere).nonzero()[:, 0].tolist() == [8, 13, 18, 23]
        assert not made.model.tokens_of(torch.zeros(56, 56)).any() and made.model.whole == 4

    def test_pictures_cut_in_another_way_are_refused(self, made):
        with pytest.raises(
            ValueError, match=r"images of \[28, 84\] pixels are cut in another way than picture=\[28, 28\]"
        ):
            made.model.vision_tokens(torch.rand(1, 3, 28, 84))

    @torch.no_grad()
    def test_a_change_in_one_tile_is_a_change_of_its_tokens(self, tmp_path):
        """Of 4 whole-picture tokens and 2 rows of 4 with a newline each, the right tile has two of each row."""
        model = tiny_llada_v.llada_v(Path(tmp_path), picture=[28, 56]).model
        image = torch.rand(1, 3, 28, 56, generator=generator(4))
        changed = image.clone()
        changed[..., 28:] = 0
        moved = (model.vision_tokens(image) - model.vision_tokens(changed))[0].abs().amax(1)
        assert (moved > 1e-3).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 6, 7, 11, 12]


@torch.no_grad()
def test_attention_is_what_transformers_own_layers_give(made):
    """Of prompts of two lengths, from the masked response to the picture."""
    vision, prompt, _ = inputs(made, (QUESTION, "is it?"))
    response = masked_response(made.model, vision)
    x, places, seen = made.model.joined(vision, prompt, response)
    decoder, kind = made.model.model, made.model.model.config._attn_implementation
    decoder.set_attn_implementation("eager")
    hidden = torch.where(seen, 0.0, -torch.inf)[:, None, None].expand(-1, 1, x.shape[1], -1)
    given = {"inputs_embeds": x, "attention_mask": hidden, "position_ids": places}
    layers = decoder(**given, output_attentions=True).attentions
    decoder.set_attn_implementation(kind)
    expected = torch.stack([layer[:, :, -response.shape[1] :, : vision.shape[1]].mean((1, 2)) for layer in layers])
    assert expected.shape == (2, 2, made.model.config.vision_length) and expected.std() > 0
    torch.testing.assert_close(attention_by_layer(made.model, vision, prompt), expected)
    torch.testing.assert_close(attention_received(made.model, vision, prompt), expected.mean(0))
    assert not any(layer.self_attn._forward_pre_hooks for layer in decoder.layers)


def test_what_prunes_the_blocks_of_our_own_model_says_that_it_cannot_here(made):
    with pytest.raises(ValueError, match="LladaVModel has no blocks of ours: .* needs the model 'mdlm'"):
        blocks_of(made.model)


def test_a_penalty_on_saliency_is_refused(made):
    """Before the model sees a sample."""
    one, ids = torch.ones(1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    data = Questions(torch.zeros(1, 1, 1), ids[0], ids, ids, [""], pd.DataFrame(index=[0]))
    with pytest.raises(ValueError, match=r"disp.hide=0.1 must be 0 for a published model"):
        adaptive_loss(made, data, one, one[None], Train(steps=1, batch=1, lr=1e-3), weight=0.1)


def test_the_words_of_a_question_are_told_from_the_conversation(made):
    texts = ["what is it", "is it"]
    prompts = made.prompts(texts)
    words = [made.tokenizer.decode(row[own]) for row, own in zip(prompts, made.question_tokens(prompts), strict=True)]
    assert words == texts
    masked = torch.where(made.question_tokens(prompts), made.model.config.mask_id, prompts)
    assert (masked == IMAGE).sum() == 2 and torch.equal(masked == made.model.config.pad_id, prompts == 1)


def test_the_joint_saliency_scores_vision_tokens_as_alone_and_words_by_their_gradients(made):
    vision, prompt, _ = inputs(made, (QUESTION, "is it?"))
    alone = fisher_jacobian(made.model, vision, prompt, probes=2, seed=3)
    scores = joint_fisher_jacobian(made.model, vision, prompt, probes=2, seed=3)
    torch.testing.assert_close(scores[0], alone)
    assert scores[1].shape == prompt.shape
    assert bool((scores[1][prompt == made.model.config.pad_id] == 0).all())
    assert bool((scores[1][made.question_tokens(prompt)] > 0).all())
