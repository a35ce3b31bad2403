"""How much each vision token of every sample matters, by the names that the profile's `disp.saliency` takes.

    scores = TOKEN_SCORES["directional"](mdlm, questions, estimator=Estimator(), batch=128, seed=0)

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
from lib.saliency.jacobian import first_positions, fisher_jacobian
from lib.saliency.masking import random_scores
from lib.saliency.rivals import attention_by_layer, attention_received, late_attention, occlusion
from lib.settings.sections import Estimator
from lib.tasks.questions import Questions

TokenScore = Callable[..., Float[Tensor, "sample vision"]]


def _by_batch(label: str, score: Callable[[MdlmModel, Tensor, Tensor, Estimator, int], Tensor]) -> TokenScore:
    """`score(model, vision, prompts, estimator, seed)` of all samples."""

    def scores(
        mdlm: Mdlm, data: Questions, *, estimator: Estimator, batch: int, seed: int, work: Path | None = None
    ) -> Float[Tensor, "sample vision"]:
        def score_batch(vision: Tensor, prompts: Tensor, seed: int) -> dict[str, Tensor]:
            return {"scores": score(mdlm.model, vision, prompts, estimator, seed)}

        length = {"scores": mdlm.model.config.vision_length}
        return by_batch(mdlm, data, score_batch, length, label, batch=batch, seed=seed, work=work)["scores"]

    return scores


def _fisher_jacobian(label: str, direction: str) -> TokenScore:
    def score(model, vision: Tensor, prompts: Tensor, estimator: Estimator, seed: int) -> Float[Tensor, "batch vision"]:
        how = estimator.model_dump(exclude={"block"}) | {"positions": first_positions(model, estimator.block)}
        return fisher_jacobian(model, vision, prompts, direction=direction, seed=seed, **how)

    return _by_batch(label, score)


def _random(
    mdlm: Mdlm, data: Questions, *, estimator: Estimator, batch: int, seed: int, work: Path | None = None
) -> Float[Tensor, "sample vision"]:
    """Scores that look at nothing."""
    return random_scores(len(data), mdlm.model.config.vision_length, seed)


directional = _fisher_jacobian("saliency", "mask")

# "directional": DiSP's own (step 1 of arXiv 2602.22246). "trace": the same over all directions. "attention": from the
# masked response, mean over layers (RedVTP, arXiv 2511.12428); "late-attention": over the later half of the layers.
# "occlusion": what masking each token alone changes, at a forward pass per token.
TOKEN_SCORES: dict[str, TokenScore] = {
    "directional": directional,
    "trace": _fisher_jacobian("trace", "all"),
    "attention": _by_batch("attention", lambda model, vision, prompts, *_: attention_received(model, vision, prompts)),
    "late-attention": _by_batch("attention", lambda model, vision, prompts, *_: late_attention(model, vision, prompts)),
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
