"""DiffusionGemma: against transformers' own calls on the same weights, what masking leaves, its loss, its layout."""

from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion_gemma as tiny_gemma
import torch
from safetensors.torch import load_file, save_file
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from lib.models.decoding import decode, generate
from lib.models.diffusion_gemma import CanvasConfig, DiffusionGemma, uniform_diffusion_loss
from lib.models.llada import IMAGE
from lib.models.loading import load_mdlm
from lib.models.mdlm import blocks_of
from lib.runtime.seeds import generator
from lib.saliency.words import joint_fisher_jacobian
from lib.tasks.questions import hide

QUESTIONS = ["is it red?", "is there a blue one?"]


@pytest.fixture(scope="module", params=[64, 6])
def folder(request, tmp_path_factory) -> str:
    """Checkpoints whose sliding window holds all of a prompt, and not."""
    return tiny_gemma.write(tmp_path_factory.mktemp("gemma"), request.param)


@pytest.fixture(scope="module")
def made(folder) -> DiffusionGemma:
    return load_mdlm(folder, **tiny_gemma.settings())


@pytest.fixture(scope="module")
def theirs(folder) -> DiffusionGemmaForBlockDiffusion:
    return DiffusionGemmaForBlockDiffusion.from_pretrained(folder).eval()


def pixels(count: int = 2, height: int = 24, width: int = 36) -> torch.Tensor:
    """Whole multiples of 1/255, as the processor takes pictures."""
    return torch.randint(256, (count, 3, height, width), generator=generator(0)) / 255


def their_inputs(made: DiffusionGemma, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """As transformers' processor gives them, each vision token a place of its own."""
    config, rows = made.model.config, []
    for row in made.prompts(QUESTIONS).tolist():
        at = row.index(IMAGE)
        rows.append(row[:at] + [config.image_token_id] * config.vision_length + row[at + 1 :])
    ids = torch.tensor(rows)
    size = config.vision_config.patch_size
    cut = [cut_up(image, size) for image in images]
    return {
        "input_ids": ids,
        "attention_mask": (ids != config.pad_id).long(),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.stack([patches for patches, _ in cut]),
        "image_position_ids": torch.stack([places for _, places in cut]),
    }


def cut_up(image: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    patches, places = [], []
    for y in range(image.shape[1] // size):
        for x in range(image.shape[2] // size):
            patch = image[:, y * size : (y + 1) * size, x * size : (x + 1) * size]
            patches.append(patch.permute(1, 2, 0).flatten())
            places.append([x, y])
    return torch.stack(patches), torch.tensor(places)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_denoising_steps": 12, "sampler_config": EntropyBoundSamplerConfig(entropy_bound=9.0)},
        {"confidence_threshold": 6.0, "t_max": 0.5},
        {"stability_threshold": 0, "confidence_threshold": 3.0},
    ],
)
def test_decodes_what_generate_decodes(made, theirs, settings):
    """Token for token, padded prompts, rows that end sooner than others, whatever the steps that `decode` is told."""
    images, config = pixels(), made.model.config
    vision, prompt = made.model.vision_tokens(images), made.prompts(QUESTIONS)
    blank = torch.full((2, config.response_length), config.mask_id)
    try:
        for model in (theirs, made.model):
            model.generation_config = type(theirs.generation_config)(**settings)
        torch.manual_seed(3)
        expected = theirs.generate(**their_inputs(made, images), max_new_tokens=config.canvas_length)
        for steps, threshold in ((config.response_length, None), (1, 0.5)):
            filled = generate(
                made.model.response_logits(vision, prompt, seed=3),
                blank,
                torch.ones_like(blank, dtype=torch.bool),
                steps=steps,
                block_length=config.response_length,
                mask_id=config.mask_id,
                threshold=threshold,
            )
            assert filled.equal(expected.sequences[:, -config.canvas_length :])
    finally:
        for model in (theirs, made.model):
            model.generation_config = type(theirs.generation_config)()


@torch.no_grad()
def test_pictures_are_cut_as_by_the_processor(tmp_path):
    """It pads to its budget of patches, which changes nothing."""
    made = load_mdlm(tiny_gemma.write(tmp_path), **(tiny_gemma.settings() | {"picture": [72, 120], "soft_tokens": 70}))
    images, config = pixels(height=72, width=120), made.model.config
    processor = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70)
    as_bytes = [(image * 255).round().numpy().astype(np.uint8) for image in images]
    given = processor(as_bytes, return_tensors="pt", input_data_format="channels_first")
    assert given["num_soft_tokens_per_image"].tolist() == [config.vision_length] * 2 == [60] * 2
    expected = made.model.model.encoder.get_image_features(
        given["pixel_values"], given["image_position_ids"]
    ).pooler_output
    torch.testing.assert_close(made.model.vision_tokens(images).flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
    assert CanvasConfig(picture=[768, 768]).vision_length == 256


@torch.no_grad()
def test_a_masked_vision_token_is_as_if_it_were_not_there(tmp_path):
    """The reference takes it out of the sequence, the others keeping their positions."""
    made = tiny_gemma.diffusion_gemma(tmp_path)
    model, config = made.model, made.model.config
    vision, prompt, canvas = model.vision_tokens(pixels(1)), made.prompts(QUESTIONS[1:]), made.responses(["red"])
    masked = torch.tensor([[False, True, False, False, True, True]])
    hidden = model.logits(hide(vision, masked, model.mask_embedding), prompt, canvas)
    assert (hidden - model.logits(vision, prompt, canvas)).abs().max() > 1e-3

    words, at = prompt[0][prompt[0] != config.pad_id], int((prompt != config.pad_id).sum())
    place = words.tolist().index(IMAGE)
    embed = model.model.encoder.language_model.embed_tokens(words.clamp(min=0))
    left = ~masked[0]
    states = torch.cat([embed[:place], vision[0][left], embed[place + 1 :]])[None]
    length = at - 1 + vision.shape[1]
    kept = torch.ones(length, dtype=torch.bool)
    kept[place : place + len(left)] = left
    places = torch.arange(length)[kept][None]
    picture = (places >= place) & (places < place + len(left))
    cache = DynamicCache(config=config.text_config)
    visible = model.model.encoder.create_masks_for_generate(
        config, states, torch.ones(1, states.shape[1]), cache, places, picture.long()
    )
    model.model.encoder.language_model(
        inputs_embeds=states, attention_mask=visible, position_ids=places, past_key_values=cache
    )
    after = torch.arange(length, length + config.canvas_length)[None]
    expected = model(decoder_input_ids=canvas, past_key_values=cache, decoder_position_ids=after).logits
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_all_vision_tokens_can_be_masked(made):
    """The picture makes no difference any more."""
    model, prompt, response = made.model, made.prompts(QUESTIONS), made.responses(["red", "blue"])
    one, other = (model.vision_tokens(images) for images in (pixels(), 1 - pixels()))
    everything = torch.ones(one.shape[:2], dtype=torch.bool)
    hidden = [model.logits(hide(part, everything, model.mask_embedding), prompt, response) for part in (one, other)]
    assert hidden[0].equal(hidden[1]) and hidden[0].isfinite().all()


@torch.no_grad()
def test_an_unknown_token_is_a_random_one_and_known_ones_are_held(made):
    model, config = made.model, made.model.config
    vision, prompt, response = model.vision_tokens(pixels()), made.prompts(QUESTIONS), made.responses(["red", "blue"])
    unknown = torch.zeros_like(response, dtype=torch.bool)
    unknown[:, 2:5] = True
    noisy = response.masked_fill(unknown, config.mask_id)
    logits = model.logits(vision, prompt, noisy)
    assert logits.equal(model.logits(vision, prompt, noisy)) and not logits.equal(
        model.logits(vision, prompt, response)
    )
    settings = {"steps": 3, "block_length": 3, "mask_id": config.mask_id}
    filled = decode(model.response_logits(vision, prompt), noisy, unknown, **settings)
    assert filled.tokens[~unknown].equal(response[~unknown]) and (filled.tokens < config.vocab_size).all()
    assert ((filled.probability[unknown] > 0) & (filled.probability[unknown] < 1)).all()
    other = decode(model.response_logits(vision, prompt), noisy.masked_fill(~unknown, 9), unknown, **settings)
    assert not other.tokens[unknown].equal(filled.tokens[unknown])


def test_the_loss_corrupts_evenly_and_counts_every_position(made, monkeypatch):
    """Of a model that is sure of one token to a known degree, whatever it is shown."""
    model, calls = made.model, []
    vocab = model.config.vocab_size

    def denoise(context, canvas, guess=None, guessed=None):
        calls.append((canvas, guess, guessed))
        return torch.zeros(*canvas.shape, vocab).index_fill(-1, torch.tensor([7]), 2.0).requires_grad_()

    monkeypatch.setattr(model, "encode", lambda vision, prompt: None)
    monkeypatch.setattr(model, "denoise", denoise)
    response = torch.randint(vocab, (64, 80), generator=generator(0))
    loss = uniform_diffusion_loss(
        model, torch.zeros(64, 0, 4), torch.zeros(64, 3, dtype=torch.long), response, generator(1)
    )
    expected = np.log(vocab - 1 + np.e**2) - 2 * (response == 7).double().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (canvas, *nothing), (again, guess, guessed) = calls
    assert nothing == [None, None] and again.equal(canvas) and guess.shape == (64, 80, vocab)
    assert 0.3 < guessed.double().mean() < 0.7
    share = (canvas != response).double().mean(1).sort().values
    assert (share - (torch.arange(64) + 0.5) / 64 * (1 - 1 / vocab)).abs().max() < 0.2
    drawn = canvas[canvas != response].bincount(minlength=vocab)  # of each about 23
    assert drawn.min() > 5 and drawn.max() < 50


def test_states_for_lladas_objective_are_refused(made):
    given = made.model.vision_tokens(pixels()), made.prompts(QUESTIONS), made.responses(["red", "blue"])
    with pytest.raises(ValueError, match="no mask token: its loss is uniform_diffusion_loss"):
        made.model.states(*given)


def test_refuses_what_does_not_fit(tmp_path):
    folder = tiny_gemma.write(tmp_path)
    with pytest.raises(ValueError, match=r"eos_id=106 must be 4, the tokenizer's <turn\|>"):
        load_mdlm(folder, **(tiny_gemma.settings() | {"eos_id": 106}))
    made = load_mdlm(folder, **tiny_gemma.settings())
    with pytest.raises(ValueError, match=r"images of \[36, 24\] pixels are cut in another way than picture=\[24, 36\]"):
        made.model.features(pixels(1, 36, 24))
    with pytest.raises(ValueError, match="places for the picture by row: exactly one is needed"):
        made.model.logits(torch.ones(1, 6, 32), torch.ones(1, 4, dtype=torch.long), made.responses(["red"]))
    shard = sorted(Path(folder).glob("*.safetensors"))[0]
    save_file(dict(list(load_file(shard).items())[1:]), shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the weights of .* are not DiffusionGemma's by its config.json: missing"):
        load_mdlm(folder, **tiny_gemma.settings())


def test_prompts_are_in_the_template_padded_on_the_left(made):
    prompt = made.prompts(QUESTIONS)[0].tolist()
    words = [token for token in prompt if token != made.model.config.pad_id]
    assert prompt == [made.model.config.pad_id] * (len(prompt) - len(words)) + words
    before, after = words[: words.index(IMAGE)], words[words.index(IMAGE) + 1 :]
    assert made.tokenizer.decode(before) == "<bos><|turn>user\n<|image>"
    assert made.tokenizer.decode(after) == "<image|>is it red?<turn|>\n<|turn>model\n"


def test_routers_and_tower_are_frozen_and_nothing_else_is(made):
    frozen = {name for name, parameter in made.model.named_parameters() if not parameter.requires_grad}
    assert frozen and all(".router." in name or ".vision_tower." in name for name in frozen)
    named = [name for name, _ in made.model.named_parameters() if ".router." in name or ".vision_tower." in name]
    assert frozen == set(named)


def test_what_looks_at_attention_or_words_says_that_it_cannot_here(made):
    vision, prompt = torch.zeros(2, made.model.config.vision_length, 32), made.prompts(QUESTIONS)
    with pytest.raises(ValueError, match="CanvasModel has no blocks of ours"):
        blocks_of(made.model)
    with pytest.raises(ValueError, match="CanvasModel has no module `embedding` that prompts pass through"):
        joint_fisher_jacobian(made.model, vision, prompt)
