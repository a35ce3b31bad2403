"""Train the editor: first the autoencoder, then the U-Net with the text encoder, on OpenMoji edits."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from lib.base.clip import shifted
from lib.datasets import OpenMoji
from lib.models.clip import Clip
from lib.models.editor import assemble, build_unet, build_vae, edit_loss, encode, tokenize, trainable
from lib.profile import Profile
from lib.training import fit

KL_WEIGHT = 1e-4


def train_vae(
    openmoji: OpenMoji, profile: Profile, seed: int, work: Path
) -> tuple[AutoencoderKL, pd.DataFrame]:
    """L1 + KL on the pictures of the train split; the scale is set so that latents have unit variance."""
    base = profile.base.editor
    torch.manual_seed(seed)
    vae = build_vae(base, profile.data.image_size)
    train = train_pictures(openmoji)

    def loss(draw: torch.Generator) -> Tensor:
        chosen = train[torch.randint(len(train), (base.vae_train.batch,), generator=draw)]
        images = shifted(openmoji.pictures(chosen), draw) * 2 - 1
        latent = vae.encode(images).latent_dist
        noise = torch.randn(latent.mean.shape, generator=draw)
        restored = vae.decode(latent.mean + latent.std * noise).sample
        return F.l1_loss(restored.float(), images) + KL_WEIGHT * latent.kl().mean() / latent.mean[0].numel()

    curve = fit(vae, loss, base.vae_train, label="base VAE", seed=seed, work=work)
    vae.register_to_config(scaling_factor=1 / encode(vae, openmoji.pictures(train[:1024])).std().item())
    return vae, curve


def train_editor(
    openmoji: OpenMoji, vae: AutoencoderKL, clip: Clip, profile: Profile, seed: int, work: Path
) -> tuple[StableDiffusionInstructPix2PixPipeline, pd.DataFrame]:
    """The U-Net from nothing and the text encoder from CLIP's; a share `tone_share` of each batch are tone edits."""
    base = profile.base.editor
    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(clip.model.config.text_config)
    text_encoder.load_state_dict(clip.model.text_model.state_dict())
    unet = trainable(build_unet(base, profile.data.image_size // 4, text_encoder.config.hidden_size))
    pipe = assemble(vae, text_encoder, clip.tokenizer, unet)
    latents = encode(vae, openmoji.pictures(torch.arange(len(openmoji.images))))
    triples = openmoji.triples[openmoji.triples["split"] == "train"]
    tokens = tokenize(pipe, triples["instruction"].tolist())
    source, target = (torch.tensor(triples[column].to_numpy()) for column in ("source", "target"))
    is_tone = torch.tensor((triples["edit"] == "tone").to_numpy())
    tones, others = is_tone.nonzero()[:, 0], (~is_tone).nonzero()[:, 0]

    def loss(draw: torch.Generator) -> Tensor:
        many = round(base.tone_share * base.unet_train.batch)
        chosen = torch.cat(
            [
                part[torch.randint(len(part), (count,), generator=draw)]
                for part, count in ((tones, many), (others, base.unet_train.batch - many))
            ]
        )
        return edit_loss(pipe, latents[source[chosen]], latents[target[chosen]], tokens[chosen], draw)

    trained = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    return pipe, fit(trained, loss, base.unet_train, label="base editor", seed=seed, work=work)


def train_pictures(openmoji: OpenMoji) -> Int[Tensor, " picture"]:
    """Indices of the pictures, recoloured ones too, whose family is in the train split."""
    own = openmoji.emoji.index[openmoji.emoji["split"] == "train"]
    made = openmoji.triples.loc[openmoji.triples["split"] == "train", "target"]
    return torch.tensor(sorted(set(own) | set(made)))
