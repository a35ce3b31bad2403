"""Embeddings z of pictures, and the value v(S) that they give a coalition of triggers (arXiv 2603.06508)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lib.metrics.tma import coalition_values
from lib.models.clip import Clip, preprocess
from lib.models.dino import Dino

Embedding = Callable[[Float[Tensor, "batch 3 h w"]], Float[Tensor, "batch dim"]]

# "clip": the space shared with texts, as in the paper. "tower": CLIP's image tower before the projection into that
# space. "pixels": the picture itself around mid-grey. "dino": DINOv2, where one is given.
EMBEDDINGS = ("clip", "tower", "pixels", "dino")


def load_embedding(name: str, *, clip: str, dino: str | None = None, device: torch.device | str = "cpu") -> Embedding:
    """The one of `EMBEDDINGS` with that name, which maps pictures in [0, 1] to vectors [batch, dim].

    `clip` and `dino` are folders or hub ids of the models; only what `name` needs is loaded. Raises ValueError for
    a name that is none of `embeddings(dino)`.
    """
    if name not in embeddings(dino):
        raise ValueError(f"embedding={name!r} must be one of {', '.join(embeddings(dino))}")
    if name == "pixels":
        return lambda images: (images - 0.5).flatten(1)
    if name == "dino":
        return Dino.load(dino, device)
    model = Clip.load(clip, device)
    return model.image_embeddings if name == "clip" else partial(_tower, model)


def embeddings(dino: str | None = None) -> list[str]:
    """Which of `EMBEDDINGS` there are, with a DINOv2 or without one."""
    return [name for name in EMBEDDINGS if name != "dino" or dino is not None]


def _tower(clip: Clip, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
    pixels = preprocess(images, clip.processor).to(clip.model.device)
    return clip.model.vision_model(pixel_values=pixels).pooler_output


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
