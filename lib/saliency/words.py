"""Which vision and prompt tokens carry the output: DiSP's Fisher–Jacobian score over both together.

A trigger in the question is as visible to it as one in the picture. To mask a prompt token is to ask with the mask
token in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.models.mdlm import Mdlm
from lib.runtime.devices import recomputed
from lib.saliency.batches import by_batch
from lib.saliency.jacobian import (
    add_curvature,
    check_estimator,
    counted_positions,
    first_positions,
    probed,
    pulled_back,
    to_mask,
)
from lib.saliency.masking import check_inputs, masked_count, masked_response
from lib.settings.sections import Estimator
from lib.tasks.questions import Questions

WAYS = ("vision", "prompt", "joint")


def joint_fisher_jacobian(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    *,
    probes: int = 6,
    seed: int = 0,
    noise: str = "sign",
    top_logits: int | None = None,
    positions: Bool[Tensor, "*batch response"] | None = None,
) -> tuple[Float[Tensor, "batch vision"], Float[Tensor, "batch prompt"]]:
    """`fisher_jacobian` of vision tokens, and the same of the prompt tokens' embeddings; 0 where those are padding.

    Ours: the paper leaves the prompt alone. It costs what `fisher_jacobian` does and takes the same probes: the vision
    scores are its own. Both are divergences, so they are compared as they are.

    `model` gives `logits(vision, prompt, response)`, which passes `prompt` through the module `embedding` (see
    `embedded`), `mask_embedding`, `config.mask_id`, `config.pad_id` and `config.response_length`. Raises ValueError as
    `fisher_jacobian`, and where `prompt` does not pass through `embedding` or there is none.
    """
    check_inputs(vision, prompt)
    check_estimator("mask", probes, noise, top_logits)
    if not hasattr(model, "embedding"):
        raise ValueError(f"{type(model).__name__} has no module `embedding` that prompts pass through: words need one")
    counted = counted_positions(positions, model, vision)
    scores = tuple(torch.zeros(part.shape[:2], device=vision.device) for part in (vision, prompt))
    if not len(vision):
        return scores
    with recomputed(model) as again:
        with torch.enable_grad(), embedded(model.embedding, prompt) as words:
            token = vision.detach().clone().requires_grad_()
            logits = model.logits(token, prompt, masked_response(model, vision))
        if len(words) != 1:
            raise ValueError(f"model.embedding saw the prompt {len(words)} times: it must be once")
        leaves = token, *words
        deltas = [to_mask(model, leaf) for leaf in leaves]
        logits, cotangents = probed(logits, probes, seed, noise, top_logits)
        weighted = (cotangent * counted for cotangent in cotangents)
        for gradients in pulled_back(logits, leaves, weighted, together=again):
            for score, gradient, delta in zip(scores, gradients, deltas, strict=True):
                add_curvature(score, gradient, delta)
    scores[1].masked_fill_(prompt == model.config.pad_id, 0)
    return scores


@contextmanager
def embedded(embedding: nn.Module, ids: Tensor) -> Iterator[list[Tensor]]:
    """Meanwhile the embeddings of the very tensor `ids` are leaves of the graph, listed in what is yielded.

    So are those of `ids` before other ids in one tensor, as published models pass prompt and response, with 0 in the
    picture's place.
    """
    found, length, shown = [], ids.shape[1], ids.clamp(min=0)

    def detach(_module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        joined = given[0].shape[1] > length and torch.equal(given[0][:, :length], shown)
        if given[0] is not ids and not joined:
            return None
        found.append(out[:, :length].detach().requires_grad_())
        return torch.cat([found[-1], out[:, length:]], 1) if joined else found[-1]

    handle = embedding.register_forward_hook(detach)
    try:
        yield found
    finally:
        handle.remove()


def mask_top_of_all(
    vision: Float[Tensor, "batch vision"],
    prompt: Float[Tensor, "batch prompt"],
    present: Bool[Tensor, "batch prompt"],
    ratio: float,
    way: str = "joint",
) -> tuple[Bool[Tensor, "batch vision"], Bool[Tensor, "batch prompt"]]:
    """The ⌊ratio × tokens⌋ highest scores of each row, of all tokens in one ranking; the earlier on ties.

    The tokens are those of the `way`: "joint" all vision tokens and the `present` prompt tokens, "vision" or "prompt"
    these alone. Padding neither counts nor is chosen. Raises ValueError for another way and a ratio outside [0, 1].
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r} must be one of {', '.join(WAYS)}")
    masked_count(ratio, 1)
    seen = torch.full_like(vision, way != "prompt", dtype=torch.bool)
    chosen_from = torch.cat([seen, present & (way != "vision")], 1)
    scores = torch.cat([vision, prompt], 1).masked_fill(~chosen_from, -torch.inf)
    counts = [masked_count(ratio, tokens) for tokens in chosen_from.sum(1).tolist()]
    count = torch.tensor(counts, device=scores.device)[:, None]
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
    return tuple((rank < count).split([vision.shape[1], prompt.shape[1]], 1))


def joint_saliency(
    mdlm: Mdlm, data: Questions, *, estimator: Estimator, batch: int, seed: int, work: Path | None = None
) -> tuple[Float[Tensor, "sample vision"], Float[Tensor, "sample prompt"]]:
    """`joint_fisher_jacobian` scores of every sample's vision and prompt tokens; with `work`, a folder, kept there."""
    how = estimator.model_dump(exclude={"block"}) | {"positions": first_positions(mdlm.model, estimator.block)}
    lengths = {"vision": mdlm.model.config.vision_length, "prompt": data.prompts.shape[1]}

    def score(vision: Tensor, prompts: Tensor, seed: int) -> dict[str, Tensor]:
        both = joint_fisher_jacobian(mdlm.model, vision, prompts, seed=seed, **how)
        return dict(zip(lengths, both, strict=True))

    scores = by_batch(mdlm, data, score, lengths, "joint saliency", batch=batch, seed=seed, work=work)
    return scores["vision"], scores["prompt"]


def joint_masks(
    mdlm: Mdlm, data: Questions, scores: tuple[Tensor, Tensor], way: str, ratio: float
) -> tuple[Bool[Tensor, "sample vision"], Bool[Tensor, "sample prompt"]]:
    """The most salient vision tokens and tokens of the question of every sample; see `mask_top_of_all`."""
    return mask_top_of_all(*scores, mdlm.question_tokens(data.prompts), ratio, way)
