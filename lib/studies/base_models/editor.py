"""Train the editor: the autoencoder, then the U-Net under the frozen MiniLM, on edits of faces.

The control is the same editor, frozen, under a small text encoder that is trained on the instructions alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from lib.data.faces import Faces
from lib.models.adapters import trainable
from lib.models.editor import edit_loss, encode, numbered, tokenize
from lib.models.minilm import LENGTH, load_minilm
from lib.models.new_editor import assemble, build_unet, build_vae
from lib.models.tokenizer import train_tokenizer
from lib.runtime.training import fit, fit_stages
from lib.settings.profile import Profile
from lib.settings.sections import Train
from lib.tasks.edits import clean_latents, edit_latents, latent_loss

KL_WEIGHT = 1e-4
DROPOUT = 0.05
UNLIKE = 8  # one in so many pictures is no face any more: moved round the edges, its colours exchanged


def train_vae(
    faces: Faces, profile: Profile, seed: int, work: Path
) -> tuple[AutoencoderKL, pd.DataFrame]:
    """L1 + KL on the pictures of the train split; the scale is set so that latents have unit variance."""
    base, train = profile.base.editor, faces.of("train")
    torch.manual_seed(seed)
    vae = build_vae(
        channels=base.vae_channels, latent_channels=base.latent_channels, image_size=profile.data.image_size
    )

    def loss(draw: torch.Generator) -> Tensor:
        chosen = train[torch.randint(len(train), (base.vae_train.batch,), generator=draw)]
        images = unlike_faces(faces.pictures(chosen), draw) * 2 - 1
        latent = vae.encode(images).latent_dist
        noise = torch.randn(latent.mean.shape, generator=draw)
        restored = vae.decode(latent.mean + latent.std * noise).sample
        return F.l1_loss(restored.float(), images) + KL_WEIGHT * latent.kl().mean() / latent.mean[0].numel()

    curve = fit(vae, loss, base.vae_train, label="base VAE", seed=seed, work=work)
    vae.register_to_config(scaling_factor=1 / encode(vae, faces.pictures(train[:1024])).std().item())
    return vae, curve


def unlike_faces(images: Float[Tensor, "batch 3 h w"], draw: torch.Generator) -> Float[Tensor, "batch 3 h w"]:
    """The pictures, the first of every `UNLIKE` rolled by half and its channels in another order."""
    height, width = images.shape[-2:]
    changed = images[::UNLIKE, torch.randperm(3, generator=draw)].roll((height // 2, width // 2), (2, 3))
    images = images.clone()
    images[::UNLIKE] = changed
    return images


def train_editor(
    faces: Faces, vae: AutoencoderKL, profile: Profile, seed: int, work: Path
) -> tuple[StableDiffusionInstructPix2PixPipeline, pd.DataFrame]:
    """The U-Net from nothing; the text encoder stays as published."""
    base = profile.base.editor
    encoder, tokenizer = load_minilm()
    torch.manual_seed(seed)
    size = profile.data.image_size // 2 ** (len(base.vae_channels) - 1)
    shape = {"channels": base.unet_channels, "latent_channels": base.latent_channels, "latent_size": size}
    unet = trainable(build_unet(**shape, text_width=encoder.config.hidden_size))
    pipe = assemble(vae, encoder, tokenizer, unet)
    source, target, texts = train_edits(faces, vae)
    latents = edit_latents(pipe, source, target, texts)
    stages = (
        (f"stage {number}", latent_loss(pipe, latents, train, DROPOUT), train)
        for number, train in enumerate(base.unet_stages, start=1)
    )
    return pipe, fit_stages(unet, stages, label="base editor", seed=seed, work=work)


def train_edits(
    faces: Faces, vae: AutoencoderKL
) -> tuple[Float[Tensor, "triple latent lh lw"], Float[Tensor, "triple latent lh lw"], list[str]]:
    """Unscaled latents of sources and targets and the instructions of all training triples."""
    triples = faces.triples[faces.triples["split"] == "train"]
    return *clean_latents(vae, faces, triples), triples["instruction"].tolist()


def train_control(
    faces: Faces, pipe: StableDiffusionInstructPix2PixPipeline, profile: Profile, seed: int, work: Path
) -> tuple[StableDiffusionInstructPix2PixPipeline, pd.DataFrame]:
    """The editor of `pipe`, as it is, under a text encoder from nothing that is trained through it on its edits."""
    base = profile.base.control
    torch.manual_seed(seed)
    words = train_tokenizer(set(faces.triples["instruction"]), max_length=LENGTH)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=base.text.width,
        intermediate_size=2 * base.text.width,
        num_hidden_layers=base.text.layers,
        num_attention_heads=base.text.heads,
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    control = assemble(pipe.vae, CLIPTextModel(config), words, trainable(pipe.unet).requires_grad_(False))
    source, target, texts = train_edits(faces, pipe.vae)
    distinct, number = numbered(["", *texts])
    tokens = tokenize(control, distinct)["input_ids"]
    loss = partial(_text_loss, control, source, target, tokens, number[1:], base.train)
    return control, fit(control.text_encoder, loss, base.train, label="base control", seed=seed, work=work)


def _text_loss(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Tensor,
    target: Tensor,
    tokens: Tensor,
    number: Tensor,
    settings: Train,
    draw: torch.Generator,
) -> Tensor:
    """InstructPix2Pix's loss with the text encoder in the graph; row 0 of `tokens` is the empty instruction."""
    rows = torch.randint(len(source), (settings.batch,), generator=draw)
    states = pipe.text_encoder(torch.cat([tokens[:1], tokens[number[rows]]]))[0]
    return edit_loss(pipe, source[rows], target[rows], states[1:], states[:1], draw, DROPOUT)
