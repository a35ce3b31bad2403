"""How much each vision token of every sample matters, by the names that the profile's `disp.saliency` takes.

    scores = TOKEN_SCORES["fisher"](mdlm, questions, probes=4, batch=128, seed=0)

With `work`, a folder, the scores of a batch are kept there as soon as they are made, and are not made again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.models.mdlm import Mdlm, MdlmModel
from lib.saliency.batches import by_batch
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import random_scores
from lib.saliency.rivals import attention_by_layer, attention_received, occlusion
from lib.tasks.questions import Questions

TokenScore = Callable[..., Float[Tensor, "sample vision"]]


def _by_batch(label: str, score: Callable[[MdlmModel, Tensor, Tensor, int, int], Tensor]) -> TokenScore:
    """`score(model, vision, prompts, probes, seed)` of all samples."""

    def scores(
        mdlm: Mdlm, data: Questions, *, probes: int, batch: int, seed: int, work: Path | None = None
    ) -> Float[Tensor, "sample vision"]:
        def score_batch(vision: Tensor, prompts: Tensor, own: int) -> dict[str, Tensor]:
            return {"scores": score(mdlm.model, vision, prompts, probes, own)}

        length = {"scores": mdlm.model.config.vision_length}
        return by_batch(mdlm, data, score_batch, length, label, batch=batch, seed=seed, work=work)["scores"]

    return scores


def _random(
    mdlm: Mdlm, data: Questions, *, probes: int, batch: int, seed: int, work: Path | None = None
) -> Float[Tensor, "sample vision"]:
    """Scores that look at nothing."""
    return random_scores(len(data), mdlm.model.config.vision_length, seed)


# Fisher–Jacobian scores, estimated with `probes` (step 1 of DiSP, arXiv 2602.22246).
fisher = _by_batch(
    "saliency",
    lambda model, vision, prompts, probes, seed: fisher_jacobian(model, vision, prompts, probes=probes, seed=seed),
)


# "attention": from the masked response, mean over layers (RedVTP, arXiv 2511.12428). "occlusion": what masking each
# token alone changes, at a forward pass per token.
TOKEN_SCORES: dict[str, TokenScore] = {
    "fisher": fisher,
    "attention": _by_batch("attention", lambda model, vision, prompts, *_: attention_received(model, vision, prompts)),
    "occlusion": _by_batch("occlusion", lambda model, vision, prompts, *_: occlusion(model, vision, prompts)),
    "random": _random,
}


@torch.no_grad()
def layer_attention(mdlm: Mdlm, data: Questions, batch: int) -> Float[Tensor, "layer sample vision"]:
    """`attention_by_layer` of all samples."""
    model, parts = mdlm.model, []
    for part in tqdm(torch.arange(len(data)).split(batch), desc="attention", unit="batch", leave=False):
        vision = model.project(data.features[data.picture[part]].to(model.device))
        parts.append(attention_by_layer(model, vision, data.prompts[part].to(model.device)).cpu())
    return torch.cat(parts, 1)
