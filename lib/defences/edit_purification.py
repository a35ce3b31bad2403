"""DiSP's answers carried over to an editor: training samples edited again, what matters most of the condition masked.

An edit has no probability as an answer has, so all edits are kept.
"""

from __future__ import annotations

from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from torch import Tensor

from lib.models.editor import edit, encode
from lib.saliency.edits import mask_condition
from lib.settings.profile import Sampling


def edit_masked(
    pipe: StableDiffusionInstructPix2PixPipeline,
    images: Float[Tensor, "batch 3 h w"],
    texts: list[str],
    way: str,
    share: float,
    sampling: Sampling,
    seed: int,
) -> Float[Tensor, "batch 3 h w"]:
    """The pictures edited under conditions of which that `share` is masked; `way` as in `mask_condition`."""
    latents = encode(pipe.vae, images.to(pipe.vae.device))
    masked = mask_condition(pipe, latents, texts, way, share, seed, sampling.batch)
    return edit(pipe, *masked, sampling, seed, label=f"edit, {way} masked").cpu()
