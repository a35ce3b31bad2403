"""The instruction editor: a real InstructPix2Pix pipeline of diffusers, tiny or published.

Brooks, Holynski, Efros 2023. The U-Net sees the noisy latent beside the source's latent. The text encoder is frozen:
what it makes of a text is computed once and handed to training and sampling as `prompt_embeds`.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BertModel, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

from lib.models.minilm import load_minilm, minilm_tokenizer
from lib.models.schedulers import scheduled
from lib.models.strict import strict, strict_words
from lib.runtime.devices import autocast
from lib.runtime.digests import folder_digest
from lib.runtime.processes import count, share
from lib.runtime.seeds import generator
from lib.settings.paths import pretrained
from lib.settings.sections import Sampling

PIXELS = 256 * 64**2
TEXT = ("text_encoder", "tokenizer")
PARTS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
EDITOR = "editor.json"
LEAST_GUIDANCE = math.nextafter(1.0, 2.0)  # at 1 diffusers turns all guidance off; in float32 this is 1


def load_editor(name: str, device: torch.device | str = "cpu") -> StableDiffusionInstructPix2PixPipeline:
    """From a local folder or the hub, safetensors only, in float32.

    A folder without a text encoder has MiniLM's; one with EDITOR is a text encoder for the editor that the file names.
    Raises ValueError where that is not the editor it was trained for, and for a part that is not whole
    (`lib.models.strict`) or does not fit the others.
    """
    source = pretrained(name)
    folder = Path(source["pretrained_model_name_or_path"])
    if folder.is_dir() and not any((folder / kind).exists() for kind in (EDITOR, *TEXT)):
        text = load_minilm()
    else:
        encoder = strict(CLIPTextModel, source | {"subfolder": TEXT[0]}, dtype=torch.float32)
        text = encoder, strict_words(CLIPTokenizer, source | {"subfolder": TEXT[1]}, encoder.config.vocab_size)
    if (folder / EDITOR).is_file():
        source = {"pretrained_model_name_or_path": str(_editor_of(folder).resolve())}
    fp32 = {"torch_dtype": torch.float32}
    parts = {part: strict(kind, source | {"subfolder": part}, **fp32) for part, kind in PARTS.items()}
    asked, width = parts["unet"].config.cross_attention_dim, text[0].config.hidden_size
    if asked != width:
        raise ValueError(f"the U-Net of {name!r} takes texts of width {asked}, but its text encoder gives {width}")
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        **source,
        **dict(zip(TEXT, text, strict=True)),
        **parts,
        dtype=torch.float32,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.float().eval().requires_grad_(False)
    return pipe.to(device)


def _editor_of(folder: Path) -> Path:
    """The editor's folder that EDITOR in `folder` names. Raises ValueError where it holds another editor by now."""
    record = json.loads((folder / EDITOR).read_text())
    editor = folder / record["editor"]
    if (digest := folder_digest(editor)) != record["sha256"]:
        raise ValueError(
            f"{folder / EDITOR}: sha256 is {record['sha256']}, but that of {editor} is {digest}: the text encoder was "
            "trained for another editor, `make base` trains it anew"
        )
    return editor


def autoencoder_source(name: str) -> str:
    """What tells the autoencoder of the editor of that name from others: its folder, or the name on the hub."""
    folder = Path(pretrained(name)["pretrained_model_name_or_path"])
    if (folder / EDITOR).is_file():
        folder = _editor_of(folder)
    return str(folder / "vae") if folder.is_dir() else name


def save_text_encoder(pipe: StableDiffusionInstructPix2PixPipeline, folder: str, editor: Path) -> None:
    """The text encoder and tokenizer alone, as float16 safetensors, for the editor in the folder `editor`.

    What that editor's weights are is written down too, so that another one makes this another model.
    """
    half = CLIPTextModel(pipe.text_encoder.config).to(torch.float16)
    half.load_state_dict(pipe.text_encoder.state_dict())
    for part, kind in ((half, TEXT[0]), (pipe.tokenizer, TEXT[1])):
        part.save_pretrained(Path(folder) / kind)
    record = {"editor": f"../{editor.name}", "sha256": folder_digest(editor)}
    (Path(folder) / EDITOR).write_text(json.dumps(record, indent=2) + "\n")


def load_text_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the editor of that name, without its models."""
    source = pretrained(name)
    folder = Path(source["pretrained_model_name_or_path"])
    if folder.is_dir() and not (folder / TEXT[1]).exists():
        return minilm_tokenizer()
    return strict_words(CLIPTokenizer, source | {"subfolder": TEXT[1]})


def save_editor(pipe: StableDiffusionInstructPix2PixPipeline, folder: str) -> None:
    """In the diffusers layout, weights as float16 safetensors, MiniLM left out; the pipeline itself stays as it is."""
    parts = [pipe.vae, pipe.unet] + ([] if published_text(pipe) else [pipe.text_encoder])
    weights = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    for part in parts:
        torch.nn.Module.to(part, torch.float16)
    pipe.save_pretrained(folder)
    for part, state in zip(parts, weights, strict=True):
        torch.nn.Module.to(part, torch.float32).load_state_dict(state)
    if published_text(pipe):
        for name in TEXT:
            shutil.rmtree(Path(folder) / name)
    # diffusers writes down the folder that a part came from
    for file in (Path(folder) / "model_index.json", *Path(folder).rglob("config.json")):
        settings = json.loads(file.read_text())
        settings.pop("_name_or_path", None)
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def published_text(pipe: StableDiffusionInstructPix2PixPipeline) -> bool:
    """Whether the text encoder is MiniLM, which comes from its package and is not saved with the editor."""
    return isinstance(pipe.text_encoder, BertModel)


@torch.no_grad()
def encode(
    vae: AutoencoderKL, images: Float[Tensor, "batch 3 h w"], batch: int | None = None
) -> Float[Tensor, "batch latent lh lw"]:
    """The mode of the latent distribution of pictures in [0, 1], unscaled; `at_once` of them together by default."""
    parts = images.split(batch or at_once(images.shape[-1]))
    return torch.cat([vae.encode(part * 2 - 1).latent_dist.mode() for part in parts])


@torch.no_grad()
def decode(
    vae: AutoencoderKL, latents: Float[Tensor, "batch latent lh lw"], batch: int | None = None
) -> Float[Tensor, "batch 3 h w"]:
    """Pictures in [0, 1] from unscaled latents; `at_once` of them together by default."""
    parts = latents.split(batch or at_once(latents.shape[-1] * 2 ** (len(vae.config.block_out_channels) - 1)))
    return torch.cat([(vae.decode(part).sample / 2 + 0.5).clamp(0, 1) for part in parts])


def at_once(size: int) -> int:
    """How many pictures of `size` × `size` pixels go through the autoencoder together: 256 of 64 pixels, 4 of 512."""
    return max(1, PIXELS // size**2)


def tokenize(
    pipe: StableDiffusionInstructPix2PixPipeline, texts: list[str]
) -> dict[str, Int[Tensor, "batch length"]]:
    """What the text encoder takes of texts padded to its full length, as in the pipeline itself."""
    length = pipe.tokenizer.model_max_length
    inputs = pipe.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    masked = getattr(pipe.text_encoder.config, "use_attention_mask", False)
    return {"input_ids": inputs.input_ids} | ({"attention_mask": inputs.attention_mask} if masked else {})


def numbered(texts: list[str]) -> tuple[list[str], Int[Tensor, " batch"]]:
    """Every distinct text once, and which of these each text is."""
    distinct = list(dict.fromkeys(texts))
    index = {text: k for k, text in enumerate(distinct)}
    return distinct, torch.tensor([index[text] for text in texts], dtype=torch.long)


@torch.no_grad()
def prompt_embeds(
    pipe: StableDiffusionInstructPix2PixPipeline, texts: list[str]
) -> Float[Tensor, "batch length width"]:
    """The frozen text encoder's states of texts, each distinct one computed once, on the encoder's device."""
    distinct, number = numbered(texts)
    device, states = pipe.text_encoder.device, []
    for start in range(0, len(distinct), 256):
        tokens = tokenize(pipe, distinct[start : start + 256])
        states.append(pipe.text_encoder(**{name: part.to(device) for name, part in tokens.items()})[0])
    return torch.cat(states)[number]


def edit_loss(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "batch latent lh lw"],
    target: Float[Tensor, "batch latent lh lw"],
    text: Float[Tensor, "batch length width"],
    empty: Float[Tensor, "1 length width"],
    draw: torch.Generator,
    dropout: float = 0.05,
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """The denoising loss with conditioning dropout: text, picture, and both, each with rate `dropout`.

    Mean over the batch of each sample's `weight` (1 by default) times its squared error.

    `source` and `target` are unscaled latents, `text` and `empty` (of "") from `prompt_embeds` (Brooks et al. 2023,
    section 3.2.1).
    """
    device = pipe.unet.device
    batch = len(source) * count()
    noise = share(torch.randn(batch, *target.shape[1:], generator=draw)).to(device)
    timesteps = share(torch.randint(pipe.scheduler.config.num_train_timesteps, (batch,), generator=draw)).to(device)
    random_p = share(torch.rand(batch, generator=draw)).to(device)
    text = torch.where((random_p < 2 * dropout)[:, None, None], empty.to(device), text.to(device))
    image_mask = ((random_p < dropout) | (random_p >= 3 * dropout))[:, None, None, None]
    latents = target.to(device) * pipe.vae.config.scaling_factor
    noisy_latents, model_target = diffuse(pipe.scheduler, latents, noise, timesteps)
    model_pred = pipe.unet(
        torch.cat([noisy_latents, source.to(device) * image_mask], dim=1), timesteps, encoder_hidden_states=text
    ).sample
    error = (model_pred.float() - model_target).square().mean((1, 2, 3))
    return (error if weight is None else error * weight.to(device)).mean()


def diffuse(
    scheduler,
    latents: Float[Tensor, "batch latent lh lw"],
    noise: Float[Tensor, "batch latent lh lw"],
    timesteps: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch latent lh lw"], Float[Tensor, "batch latent lh lw"]]:
    """(noisy latents, what the U-Net must predict) by the scheduler's own schedule and prediction type."""
    alpha = scheduler.alphas_cumprod.to(latents)[timesteps][:, None, None, None]
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    noisy_latents = signal * latents + sigma * noise
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "v_prediction":
        return noisy_latents, signal * noise - sigma * latents
    if prediction_type == "epsilon":
        return noisy_latents, noise
    raise ValueError(f"prediction_type={prediction_type!r} of the scheduler must be 'v_prediction' or 'epsilon'")


@torch.no_grad()
def edit(
    pipe: StableDiffusionInstructPix2PixPipeline,
    images: Float[Tensor, "batch channel h w"],
    instructions: list[str],
    sampling: Sampling,
    seed: int,
    label: str = "edit",
) -> Float[Tensor, "batch 3 height width"]:
    """Sampled edits of pictures in [0, 1], or of their unscaled latents, in half precision.

    Guided by ε(∅, ∅) + s_I (ε(I, ∅) − ε(∅, ∅)) + s_T (ε(I, T) − ε(I, ∅)) (Brooks et al. 2023, eq. 3), whatever the
    scales. Picture k always starts from the noise of (seed, k).
    """
    if len(images) != len(instructions):
        raise ValueError(
            f"instructions: {len(instructions)} given for {len(images)} images, one each is needed"
        )
    if not instructions:
        return images
    pipe = scheduled(pipe, sampling.scheduler)
    edited, embeds, empty = [], prompt_embeds(pipe, instructions), prompt_embeds(pipe, [""])
    for start in tqdm(range(0, len(images), sampling.batch), desc=label, unit="batch", leave=False):
        batch = slice(start, start + sampling.batch)
        generators = [generator(seed, "edit", k) for k in range(len(images))[batch]]
        with autocast(pipe.unet.device):
            output = pipe(
                prompt_embeds=embeds[batch],
                negative_prompt_embeds=empty.expand_as(embeds[batch]),
                image=images[batch],
                num_inference_steps=sampling.steps,
                guidance_scale=max(sampling.text_guidance, LEAST_GUIDANCE),
                image_guidance_scale=sampling.image_guidance,
                generator=generators,
                output_type="pt",
            )
        edited.append(output.images.float())
    return torch.cat(edited)
