"""How much each vision token of every sample matters, by the names that the profile's `disp.saliency` takes.

With `work`, a folder, the scores of a batch are kept there as soon as they are made, and are not made again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lib.answering import Questions
from lib.models.mdlm import Mdlm
from lib.precision import autocast
from lib.profile import Disp
from lib.saliency import fisher_jacobian, random_scores
from lib.saliency_rivals import attention_received
from lib.saliency_rivals import occlusion as occlusion_divergence
from lib.shards import sharded


def fisher(
    mdlm: Mdlm, data: Questions, settings: Disp, seed: int, work: Path | None = None
) -> Float[Tensor, "sample vision"]:
    """Fisher–Jacobian scores, estimated with `settings.probes` (step 1 of DiSP, arXiv 2602.22246)."""

    def score(vision: Tensor, prompts: Tensor, k: int) -> Tensor:
        return fisher_jacobian(mdlm.model, vision, prompts, probes=settings.probes, seed=seed + k)

    return _batched(mdlm, data, settings, work, "saliency", score)


def attention(
    mdlm: Mdlm, data: Questions, settings: Disp, seed: int, work: Path | None = None
) -> Float[Tensor, "sample vision"]:
    """Attention from the masked response, mean over layers (RedVTP, arXiv 2511.12428)."""
    return _batched(mdlm, data, settings, work, "attention", lambda *given: attention_received(mdlm.model, *given[:2]))


def occlusion(
    mdlm: Mdlm, data: Questions, settings: Disp, seed: int, work: Path | None = None
) -> Float[Tensor, "sample vision"]:
    """What masking each token alone changes, at a forward pass per token."""
    return _batched(
        mdlm, data, settings, work, "occlusion", lambda *given: occlusion_divergence(mdlm.model, *given[:2])
    )


def random(
    mdlm: Mdlm, data: Questions, settings: Disp, seed: int, work: Path | None = None
) -> Float[Tensor, "sample vision"]:
    """Scores that look at nothing."""
    return random_scores(len(data), mdlm.model.config.vision_length, seed)


TokenScore = Callable[[Mdlm, Questions, Disp, int, Path | None], Float[Tensor, "sample vision"]]
TOKEN_SCORES: dict[str, TokenScore] = {score.__name__: score for score in (fisher, attention, occlusion, random)}


def _batched(
    mdlm: Mdlm,
    data: Questions,
    settings: Disp,
    work: Path | None,
    label: str,
    score: Callable[[Tensor, Tensor, int], Tensor],
) -> Float[Tensor, "sample vision"]:
    """`score(vision, prompts, k)` of the k-th `settings.batch` samples, and so on."""
    device = mdlm.model.device

    def make(part: range) -> dict[str, Tensor]:
        if not part:
            return {"scores": torch.zeros(0, mdlm.model.config.vision_length)}
        own = data[part.start : part.stop]
        with torch.no_grad():
            vision = mdlm.model.project(own.features[own.picture].to(device))
        with autocast(device):
            return {"scores": score(vision, own.prompts.to(device), part.start // settings.batch)}

    return sharded(work, len(data), settings.batch, make, label)["scores"]
