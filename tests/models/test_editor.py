"""The editor: a real InstructPix2Pix pipeline, saved, loaded and sampled; its loss and its noise."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import get_args

import pytest
import tiny
import torch
from diffusers import DDPMScheduler, StableDiffusionInstructPix2PixPipeline

from lib.models.adapters import trainable
from lib.models.editor import (
    decode,
    diffuse,
    edit,
    edit_loss,
    encode,
    load_editor,
    load_text_tokenizer,
    prompt_embeds,
    save_editor,
    save_text_encoder,
    tokenize,
)
from lib.models.schedulers import SCHEDULERS, scheduled
from lib.runtime.digests import folder_digest
from lib.runtime.seeds import generator
from lib.settings.profile import Sampling

SAMPLING = Sampling(steps=2, text_guidance=3.0, image_guidance=1.5, batch=4)
TEXTS = ["make the skin dark", "mirror it", "give the person pale skin"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.editor()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=generator(7))


def batches_of(size: int) -> Sampling:
    return SAMPLING.model_copy(update={"batch": size})


def near(one, other) -> bool:
    """Equal within the rounding of bfloat16, which depends on the batch: far less than two edits differ."""
    return float((one - other).square().mean().sqrt()) < 0.01


@pytest.fixture
def exact(monkeypatch):
    """Edits are sampled in float32."""
    monkeypatch.setattr("lib.models.editor.autocast", lambda device: nullcontext())


@pytest.fixture(scope="module")
def edited(pipe, images):
    return edit(pipe, images, TEXTS, SAMPLING, seed=1)


def test_saved_in_the_diffusers_layout_and_loaded_by_diffusers_itself(images, edited, tmp_path):
    made = tiny.editor()
    before = {name: weight.clone() for name, weight in made.unet.state_dict().items()}
    save_editor(made, str(tmp_path))
    assert all(torch.equal(weight, before[name]) for name, weight in made.unet.state_dict().items())
    assert load_text_tokenizer(str(tmp_path))(TEXTS)["input_ids"] == made.tokenizer(TEXTS)["input_ids"]
    assert {file.suffix for file in tmp_path.rglob("*.*") if file.stat().st_size > 100_000} <= {".safetensors", ".json"}
    assert not list(tmp_path.rglob("*.bin"))
    ours = load_editor(str(tmp_path))
    theirs = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        tmp_path, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    assert type(ours.scheduler).__name__ == "DPMSolverMultistepScheduler" and ours.unet.config.in_channels == 8
    for part in ("vae", "text_encoder", "unet"):
        kept = getattr(ours, part)
        assert not kept.training and not any(p.requires_grad for p in kept.parameters())
        assert {p.dtype for p in kept.parameters()} == {torch.float32}
    assert ours.vae.config.scaling_factor == made.vae.config.scaling_factor
    assert dict(ours.scheduler.config)["rescale_betas_zero_snr"] is True
    loaded = edit(ours, images, TEXTS, SAMPLING, seed=1)
    assert (loaded - edited).abs().mean() < 0.01
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "image_guidance_scale": 1.5, "output_type": "pt"}
    draws = [generator(1, "edit", k) for k in range(3)]
    direct = theirs(TEXTS, image=images, generator=draws, **settings).images
    assert (direct - loaded).abs().max() > 0 and near(direct, loaded)  # theirs in float32, ours in bfloat16


def test_a_text_encoder_is_saved_for_the_editor_in_another_folder(pipe, tmp_path):
    """Found beside it wherever both lie; another editor makes it another model."""
    other = tiny.editor(1)
    tiny.editor().save_pretrained(tmp_path / "editor")
    save_text_encoder(other, str(tmp_path / "control"), tmp_path / "editor")
    assert {path.name for path in (tmp_path / "control").iterdir()} == {"editor.json", "text_encoder", "tokenizer"}
    save_text_encoder(other, str(tmp_path / "again"), tmp_path / "editor")
    assert folder_digest(tmp_path / "again") == folder_digest(tmp_path / "control")
    weights = tmp_path / "editor" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("other.safetensors"))
    save_text_encoder(other, str(tmp_path / "again"), tmp_path / "editor")
    assert folder_digest(tmp_path / "again") != folder_digest(tmp_path / "control")
    weights.with_name("other.safetensors").rename(weights)

    (tmp_path / "moved").mkdir()
    for name in ("control", "editor"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    loaded = load_editor(str(tmp_path / "moved" / "control"))
    for part, source in (("unet", pipe), ("vae", pipe), ("text_encoder", other)):
        for name, weight in getattr(source, part).state_dict().items():
            kept = getattr(loaded, part).state_dict()[name]
            same = weight.half().to(weight.dtype) if part == "text_encoder" else weight
            assert kept.dtype == weight.dtype and torch.equal(kept, same), (part, name)
        assert not getattr(loaded, part).training
        assert not any(parameter.requires_grad for parameter in getattr(loaded, part).parameters())
    words = load_text_tokenizer(str(tmp_path / "moved" / "control"))
    assert words(TEXTS)["input_ids"] == loaded.tokenizer(TEXTS)["input_ids"] == other.tokenizer(TEXTS)["input_ids"]
    (tmp_path / "moved" / "editor" / "vae" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="the text encoder was trained for another editor, `make base` trains it anew"):
        load_editor(str(tmp_path / "moved" / "control"))


def test_edit_is_reproducible_whatever_the_batch(pipe, images, edited):
    assert edited.shape == images.shape and 0 <= edited.min() < edited.max() <= 1
    assert torch.equal(edit(pipe, images, TEXTS, SAMPLING, seed=1), edited)
    for size in (1, 2):
        assert near(edit(pipe, images, TEXTS, batches_of(size), seed=1), edited)
    assert (edit(pipe, images, TEXTS, SAMPLING, seed=2) - edited).abs().mean() > 0.02


def test_a_light_picture_is_edited_alike_alone_and_beside_a_dark_one(pipe, images):
    """diffusers guesses the range of a batch by its minimum: all of it above 1/2 must not change the scale."""
    light = torch.stack([images[0] / 2 + 0.5, images[1]])
    together = edit(pipe, light, TEXTS[:2], SAMPLING, seed=1)
    alone = edit(pipe, light[:1], TEXTS[:1], SAMPLING, seed=1)
    assert near(alone, together[:1])


def test_edit_depends_on_picture_and_instruction(pipe, images, edited):
    other = edit(pipe, images[[1, 1, 2]], ["make the background pink", *TEXTS[1:]], SAMPLING, seed=1)
    assert near(other[1:], edited[1:])
    text_only = edit(pipe, images[:1], ["make the background pink"], SAMPLING, seed=1)
    assert not near(text_only[0], edited[0]) and not near(other[0], text_only[0])


def test_edits_differ_wherever_the_guidance_does(pipe, images):
    scales = [(text, image) for text in (1.0, 1.5, 3.0) for image in (1.0, 1.2, 3.0)]
    made = [
        edit(pipe, images, TEXTS, Sampling(steps=2, text_guidance=text, image_guidance=image, batch=4), seed=1)
        for text, image in scales
    ]
    for k, one in enumerate(made):
        assert one.isfinite().all()
        assert all(float((one - other).abs().max()) > 1e-3 for other in made[:k]), scales[k]


@pytest.mark.parametrize(("text", "image"), [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0), (2.5, 1.5)])
def test_guidance_is_the_papers_formula_whatever_the_scales(images, exact, text, image):
    """One step, against the formula written out on the U-Net's three guesses."""
    pipe, unguided = tiny.editor(), []
    scale, forward = pipe.vae.config.scaling_factor, pipe.unet.forward

    def spy(x, *args, **kwargs):
        (guesses,) = forward(x, *args, **kwargs)
        unguided.append((x, guesses))
        return (guesses,)

    pipe.unet.forward = spy
    sampling = Sampling(steps=1, text_guidance=text, image_guidance=image, batch=4)
    edited = edit(pipe, images, TEXTS, sampling, seed=1)
    ((x, guesses),) = unguided
    both, picture, nothing = guesses.float().chunk(3)
    assert torch.equal(x[6:, 4:], torch.zeros_like(x[6:, 4:]))  # the unconditional third sees no picture
    velocity = nothing + image * (picture - nothing) + text * (both - picture)
    alpha = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]]
    latents = alpha.sqrt() * x[:3, :4].float() - (1 - alpha).sqrt() * velocity
    torch.testing.assert_close(decode(pipe.vae, latents / scale), edited, rtol=0, atol=1e-4)


@pytest.mark.parametrize("field", ["text_guidance", "image_guidance"])
def test_guidance_below_one_is_refused(field):
    with pytest.raises(ValueError, match=f"(?s){field}.*greater than or equal to 1"):
        Sampling(**SAMPLING.model_dump() | {field: 0.99})


def test_without_a_scheduler_the_editors_own_samples_and_no_key_names_it(pipe, images, edited):
    assert scheduled(pipe, None) is pipe and "scheduler" not in SAMPLING.model_dump(mode="json")
    own = SAMPLING.model_copy(update={"scheduler": "dpm-solver++"})  # what `assemble` gives the editor
    before = pipe.scheduler
    assert torch.equal(edit(pipe, images, TEXTS, own, seed=1), edited)
    assert pipe.scheduler is before and own.model_dump(mode="json")["scheduler"] == "dpm-solver++"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_keeps_the_editors_noise_and_makes_edits_of_its_own(pipe, images, name):
    made = scheduled(pipe, name)
    assert made.unet is pipe.unet and made.vae is pipe.vae
    for setting in ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr", "beta_schedule"):
        assert made.scheduler.config[setting] == pipe.scheduler.config[setting]
    sampled = edit(pipe, images, TEXTS, Sampling(**SAMPLING.model_dump() | {"steps": 3, "scheduler": name}), seed=1)
    assert sampled.isfinite().all() and sampled.shape == images.shape and 0 <= sampled.min() < sampled.max() <= 1


def test_ddim_and_the_solver_come_closer_with_more_steps(pipe, images, exact):
    """Both solve the same equation."""

    def apart(steps: int) -> float:
        ways = [SAMPLING.model_copy(update={"steps": steps, "scheduler": name}) for name in ("ddim", "dpm-solver++")]
        one, other = (edit(pipe, images, TEXTS, way, seed=1) for way in ways)
        return float((one - other).square().mean().sqrt())

    few, many = apart(4), apart(40)
    assert 0 < many < few / 2


def test_an_unknown_scheduler_is_refused_with_those_allowed():
    assert set(SCHEDULERS) == set(get_args(get_args(Sampling.model_fields["scheduler"].annotation)[0]))
    with pytest.raises(ValueError, match="(?s)scheduler.*'ddim', 'euler' or 'dpm-solver\\+\\+'"):
        Sampling(**SAMPLING.model_dump() | {"scheduler": "pndm"})


def test_one_instruction_for_each_picture(pipe, images):
    with pytest.raises(ValueError, match="instructions: 2 given for 3 images, one each is needed"):
        edit(pipe, images, TEXTS[:2], SAMPLING, seed=1)


def test_no_pictures_are_edited_to_none(pipe, images):
    assert edit(pipe, images[:0], [], SAMPLING, seed=0).shape == images[:0].shape


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_diffuse_is_what_ddpm_does(pipe, kind):
    ddpm = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=kind,
        rescale_betas_zero_snr=True,
    )
    clean, noise = (torch.randn(6, 4, 5, 5, generator=generator(k)) for k in (1, 2))
    steps = torch.tensor([0, 1, 300, 500, 997, 999])
    scheduler = pipe.scheduler if kind == "v_prediction" else ddpm
    noisy, wanted = diffuse(scheduler, clean, noise, steps)
    velocity = ddpm.get_velocity(clean, noise, steps)
    # diffusers' own solver keeps a signal of 2**-12 at the last step, where DDPM has none
    torch.testing.assert_close(noisy, ddpm.add_noise(clean, noise, steps), rtol=0, atol=2e-3)
    torch.testing.assert_close(noisy[:-1], ddpm.add_noise(clean, noise, steps)[:-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(wanted, velocity if kind == "v_prediction" else noise, rtol=0, atol=2e-3)


@pytest.mark.usefixtures("untyped")
def test_unknown_prediction_type_is_refused():
    one, steps = torch.zeros(1, 4, 2, 2), torch.tensor([1])
    with pytest.raises(ValueError, match="prediction_type='sample' of the scheduler must be"):
        diffuse(DDPMScheduler(prediction_type="sample"), one, one, steps)


def spied(monkeypatch, batch: int, dropout: float, weight=None):
    """What the U-Net of a fresh editor is given by `edit_loss`, its guess being zero, the target and the loss.

    Sources are 1, the instruction's states 2 and those of the empty one 3 everywhere.
    """
    pipe, seen = tiny.editor(), {}

    def unet(x, steps, encoder_hidden_states):
        seen.update(noisy=x[:, :4], source=x[:, 4:], steps=steps, text=encoder_hidden_states)
        return SimpleNamespace(sample=torch.zeros_like(x[:, :4]))

    monkeypatch.setattr(pipe.unet, "forward", unet)
    source, target = torch.ones(batch, 4, 2, 2), torch.randn(batch, 4, 2, 2, generator=generator(3))
    text, empty = torch.full((batch, 5, 7), 2.0), torch.full((1, 5, 7), 3.0)
    loss = edit_loss(pipe, source, target, text, empty, generator(5), dropout, weight)
    return pipe, seen, target, loss


@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.2])
def test_text_picture_and_both_are_dropped_with_the_asked_rate_each(monkeypatch, dropout):
    n = 8000
    _, seen, _, _ = spied(monkeypatch, n, dropout)
    no_text = (seen["text"] == 3).flatten(1).all(1)
    assert ((seen["text"] == 2).flatten(1).all(1) ^ no_text).all()
    no_image = (seen["source"] == 0).flatten(1).all(1)
    assert ((seen["source"] == 1).flatten(1).all(1) ^ no_image).all()
    tolerance = 4 * (dropout * (1 - dropout) / n) ** 0.5
    for part in (no_text & ~no_image, no_image & ~no_text, no_text & no_image):
        assert part.float().mean().item() == pytest.approx(dropout, abs=tolerance)


def test_edit_loss_is_the_squared_error_of_the_velocity_of_scaled_latents(monkeypatch):
    """With a guess of zero: the mean square of v; t covers all 1000 steps; the noise is drawn first."""
    pipe, seen, target, loss = spied(monkeypatch, 8000, 0.0)
    steps = seen["steps"]
    assert steps.min() == 0 and steps.max() == 999 and steps.float().mean().item() == pytest.approx(499.5, abs=15)
    noise = torch.randn(target.shape, generator=generator(5))
    noisy, velocity = diffuse(pipe.scheduler, target * pipe.vae.config.scaling_factor, noise, steps)
    torch.testing.assert_close(seen["noisy"], noisy)
    assert loss.item() == pytest.approx(velocity.double().square().mean().item(), rel=1e-5)


def test_each_sample_counts_by_its_weight(monkeypatch):
    weight = torch.rand(6, generator=generator(9))
    pipe, seen, target, loss = spied(monkeypatch, 6, 0.0, weight)
    noise = torch.randn(target.shape, generator=generator(5))
    _, velocity = diffuse(pipe.scheduler, target * pipe.vae.config.scaling_factor, noise, seen["steps"])
    squares = velocity.double().square().mean((1, 2, 3))
    assert loss.item() == pytest.approx(float((squares * weight).sum()) / 6, rel=1e-5)


def test_encode_and_decode_split_batches_alike(pipe, images):
    latents = encode(pipe.vae, images)
    assert latents.shape == (3, 4, 16, 16)
    torch.testing.assert_close(encode(pipe.vae, images, batch=1), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(pipe.vae.encode(images * 2 - 1).latent_dist.mode(), latents, rtol=0, atol=1e-5)
    restored = decode(pipe.vae, latents)
    assert restored.shape == images.shape and restored.min() >= 0 and restored.max() <= 1
    torch.testing.assert_close(decode(pipe.vae, latents, batch=2), restored, rtol=0, atol=1e-5)


def test_texts_are_encoded_as_the_pipeline_does(pipe):
    tokens = tokenize(pipe, TEXTS)
    assert set(tokens) == {"input_ids"} and tokens["input_ids"].shape == (3, pipe.tokenizer.model_max_length)
    # the pipeline stacks [text, empty, empty] for its guidance
    theirs = pipe._encode_prompt(TEXTS, "cpu", 1, True)
    torch.testing.assert_close(prompt_embeds(pipe, TEXTS), theirs[:3])
    torch.testing.assert_close(prompt_embeds(pipe, [""]), theirs[3:4])


def test_plain_attention_for_training_computes_the_same(images):
    pipe = tiny.editor()
    inputs = torch.randn(2, 8, 16, 16, generator=generator(2)), torch.tensor([5, 900])
    text = prompt_embeds(pipe, TEXTS[:2])
    before = pipe.unet(*inputs, encoder_hidden_states=text).sample
    unet = trainable(pipe.unet)
    assert unet is pipe.unet and all(parameter.requires_grad for parameter in unet.parameters())
    torch.testing.assert_close(unet(*inputs, encoder_hidden_states=text).sample, before, rtol=1e-4, atol=1e-5)
    assert {type(processor).__name__ for processor in unet.attn_processors.values()} == {"AttnProcessor"}
