"""Embeddings z of pictures, and the value v(S) that they give a coalition of triggers (arXiv 2603.06508)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.attribution import coalition_values
from lib.models.clip import Clip, preprocess

Embedding = Callable[[Float[Tensor, "batch 3 h w"]], Float[Tensor, "batch dim"]]


def _tower(clip: Clip) -> Embedding:
    def embed(images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        pixels = preprocess(images, clip.processor).to(clip.model.device)
        return clip.model.vision_model(pixel_values=pixels).pooler_output

    return embed


# "clip": the space shared with texts, as in the paper. "tower": CLIP's image tower before the projection into that
# space. "pixels": the picture itself around mid-grey.
EMBEDDINGS: dict[str, Callable[[Clip], Embedding]] = {
    "clip": lambda clip: clip.image_embeddings,
    "tower": _tower,
    "pixels": lambda clip: lambda images: (images - 0.5).flatten(1),
}


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
