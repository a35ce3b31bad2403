"""The Fisher–Jacobian scores without noise: along one direction by forward mode, over all by F's eigenvectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.saliency.masking import VARIANTS, masked_response

TAIL = 1e-5  # share of the response's Fisher trace that the exact trace may leave out


@torch.no_grad()
def pushed_forward(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    delta: Float[Tensor, "batch vision dim"],
    top_logits: int | None,
    counted: Float[Tensor, "*batch response 1"],
) -> Float[Tensor, "batch vision"]:
    """½ Σ (J_i δ_i)ᵀ F (J_i δ_i) over response positions, weighted by `counted`.

    J_i δ_i by forward mode, of `VARIANTS` tokens i at a time. The other arguments are those of `fisher_jacobian`.
    """
    response, score = masked_response(model, vision), torch.zeros(vision.shape[:2], device=vision.device)
    for k, row in enumerate(vision):
        weight = counted.expand(len(vision), -1, -1)[k, :, 0]
        for tokens in torch.arange(len(row), device=row.device).split(VARIANTS):
            copies = torch.arange(len(tokens), device=row.device)
            moved = row.new_zeros(len(tokens), *row.shape)
            moved[copies, tokens] = delta[k, tokens]
            words = (part[k].expand(len(tokens), -1) for part in (prompt, response))
            with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _plain_experts(model):
                dual = forward_ad.make_dual(row.repeat(len(tokens), 1, 1), moved)
                logits, change = forward_ad.unpack_dual(model.logits(dual, *words))
            if change is None:
                continue  # no token of these is seen
            score[k, tokens] = (_variance(logits, change, top_logits) * weight).sum(1).float() / 2
    return score


@contextmanager
def _plain_experts(model) -> Iterator[None]:
    """Within, a mixture of experts is computed expert by expert: as fused attention, its fused form has no forward
    mode."""
    experts = getattr(getattr(model, "config", None), "_experts_implementation", None)
    if experts is None:
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(experts)


def _variance(logits: Tensor, change: Tensor, top_logits: int | None) -> Float[Tensor, "token position"]:
    """uᵀ F u of every position: the variance of the logits' change u under p."""
    logits, change = logits.double(), change.double()
    if top_logits:
        highest = highest_logits(logits, top_logits)
        logits, change = logits.gather(-1, highest), change.gather(-1, highest)
    p = logits.softmax(-1)
    return (p * (change - (p * change).sum(-1, keepdim=True)).square()).sum(-1)


def highest_logits(logits: Float[Tensor, "*batch vocab"], count: int) -> Int[Tensor, "*batch _"]:
    """Where the `count` highest logits of each position are, or all where there are fewer: F is of these alone."""
    return logits.topk(min(count, logits.shape[-1]), dim=-1).indices


def eigenvectors(
    logits: Float[Tensor, "batch position vocab"], weight: Float[Tensor, "vocab width"] | None
) -> Iterator[Float[Tensor, "batch position vocab"]]:
    """Cotangents u √λ, heaviest first, one at a position of every sample, until what is left is below `TAIL`.

    λ and v are the eigenvalues and -vectors of Wᵀ F W at all positions, and u = F W v / λ: then Wᵀ u √λ = v √λ, so
    what flows back through W has the covariance Wᵀ F W. Without `weight`, W = I.
    """
    p = logits.double().softmax(-1)
    basis = torch.eye(p.shape[-1]).to(p) if weight is None else weight.double()
    values, vectors = [], []
    for sample in p:
        mean = sample @ basis
        seen = torch.stack([(basis.mT * row) @ basis for row in sample]) - mean[:, :, None] * mean[:, None]
        value, vector = torch.linalg.eigh(seen)
        values.append(value.clamp(min=0).flatten())
        vectors.append(vector.mT.flatten(0, 1))
    value, order = torch.stack(values).sort(1, descending=True)
    left = value.flip(1).cumsum(1).flip(1)  # from this direction on
    count = int((left > TAIL * left[:, :1]).sum(1).max())
    rows = torch.arange(len(p), device=p.device)
    for k in range(count):
        place = order[:, k]
        position = place // basis.shape[1]
        at_position = p[rows, position]
        along = torch.stack([vector[at] for vector, at in zip(vectors, place, strict=True)]) @ basis.mT
        known = value[:, k] > 1e-12 * value[:, 0]
        scale = torch.where(known, value[:, k].rsqrt(), 0.0)[:, None]
        cotangent = torch.zeros_like(logits)
        mean = (at_position * along).sum(1, keepdim=True)
        cotangent[rows, position] = (scale * at_position * (along - mean)).to(logits)
        yield cotangent
