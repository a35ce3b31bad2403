"""Embeddings z of pictures, and the value v(S) that they give a coalition of triggers (arXiv 2603.06508)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.attribution import coalition_values
from lib.models.clip import Clip, preprocess
from lib.models.dino import Dino
from lib.profile import Models

Embedding = Callable[[Float[Tensor, "batch 3 h w"]], Float[Tensor, "batch dim"]]


def _tower(clip: Clip) -> Embedding:
    def embed(images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        pixels = preprocess(images, clip.processor).to(clip.model.device)
        return clip.model.vision_model(pixel_values=pixels).pooler_output

    return embed


# "clip": the space shared with texts, as in the paper. "tower": CLIP's image tower before the projection into that
# space. "pixels": the picture itself around mid-grey. "dino": DINOv2, where the profile names one.
EMBEDDINGS: dict[str, Callable[[Models, torch.device], Embedding]] = {
    "clip": lambda models, device: Clip.load(models.clip, device).image_embeddings,
    "tower": lambda models, device: _tower(Clip.load(models.clip, device)),
    "pixels": lambda models, device: lambda images: (images - 0.5).flatten(1),
    "dino": lambda models, device: Dino.load(models.dino, device),
}


def embeddings(models: Models) -> list[str]:
    """Which of EMBEDDINGS these models give."""
    return [name for name in EMBEDDINGS if name != "dino" or models.dino is not None]


@torch.no_grad()
def values(
    embed: Embedding,
    edited: Float[Tensor, "sample coalition 3 h w"],
    target: Float[Tensor, "sample 3 h w"],
    clean: Float[Tensor, "sample 3 h w"],
) -> Float[Tensor, "sample coalition"]:
    """v(S) of every sample: z_S from `edited`, z_tr from the attacker's `target`, z_cl from the true edit `clean`."""
    outputs = embed(edited.flatten(0, 1)).unflatten(0, edited.shape[:2])
    return coalition_values(outputs, embed(target), embed(clean)).cpu()
