"""Which vision tokens carry the output: the Fisher–Jacobian score of DiSP, and random scores beside it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.config import generator


def fisher_jacobian(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    *,
    probes: int = 4,
    seed: int = 0,
    exact: bool = False,
) -> Float[Tensor, "batch vision"]:
    """tr(J_iᵀ F J_i) for every vision token i, at the first denoising step (the response fully masked).

    J_i is the Jacobian of the response's logits with respect to token i's embedding and F = diag(p) − p pᵀ the
    softmax Fisher matrix of each response position, so the score is the curvature of the KL divergence of the
    output along perturbations of that token, summed over directions and response positions (arXiv 2602.22246).

    Estimated by Hutchinson's method: g = √p ∘ ε − p ⟨√p, ε⟩ with ε ~ N(0, I) has covariance F, so the mean over
    `probes` of ‖J_iᵀ g‖² is unbiased. The noise of a sample depends on `seed` and its place in the batch.
    `exact` takes every direction √p_k (e_k − p) in turn instead: one backward pass per response position and
    vocabulary entry, for tests.

    `model` gives `logits(vision, prompt, response)`, `config.mask_id` and `config.response_length`.
    Returns non-negative scores. Raises ValueError for wrong shapes, dtypes, NaN, or `probes` below 1.
    """
    if not isinstance(vision, Tensor) or vision.ndim != 3 or not vision.is_floating_point():
        raise ValueError(f"vision must be floating [batch, vision, dim], not {_describe(vision)}")
    if (
        not isinstance(prompt, Tensor)
        or prompt.ndim != 2
        or prompt.is_floating_point()
        or prompt.dtype == torch.bool
    ):
        raise ValueError(f"prompt must be integers [batch, prompt], not {_describe(prompt)}")
    if len(prompt) != len(vision):
        raise ValueError(f"prompt has {len(prompt)} rows for {len(vision)} of vision: they must be equal")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes={probes!r} must be an integer of at least 1")
    if bool(vision.isnan().any()):
        raise ValueError("vision holds NaN")
    if not len(vision):
        return vision.new_zeros(vision.shape[:2], dtype=torch.float32)
    blank = torch.full(
        (len(vision), model.config.response_length), model.config.mask_id, device=vision.device
    )
    with torch.enable_grad():
        token = vision.detach().clone().requires_grad_()
        logits = model.logits(token, prompt, blank).float()
        p = logits.detach().softmax(-1)
        score = torch.zeros(vision.shape[:2], device=vision.device)
        if exact:
            for row in range(p.shape[1]):
                for k in range(p.shape[2]):
                    direction = torch.zeros_like(p)
                    direction[:, row] = -p[:, row]
                    direction[:, row, k] += 1
                    direction[:, row] *= p[:, row, k, None].sqrt()
                    score += _squared_norm(logits, direction, token)
            return score
        draw = generator(seed, "fisher probes")
        for _ in range(probes):
            noise = torch.randn(p.shape, generator=draw).to(p.device)
            score += _squared_norm(logits, fisher_probe(p, noise), token)
    return score / probes


def fisher_probe(
    p: Float[Tensor, "*batch vocab"], noise: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch vocab"]:
    """g = √p ∘ ε − p ⟨√p, ε⟩, whose covariance over standard normal ε is F = diag(p) − p pᵀ."""
    scaled = p.sqrt() * noise
    return scaled - p * scaled.sum(-1, keepdim=True)


def random_scores(batch: int, tokens: int, seed: int) -> Float[Tensor, "batch vision"]:
    """Uniform scores: the baseline that masks tokens without looking."""
    return torch.rand(batch, tokens, generator=generator(seed, "random scores"))


def most_salient(scores: Float[Tensor, "batch vision"], ratio: float) -> Bool[Tensor, "batch vision"]:
    """The round(ratio × tokens) highest scores of each row; the earlier token on ties.

    Raises ValueError for a ratio outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio!r} must be in [0, 1]")
    count = round(ratio * scores.shape[1])
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :count], True)


def _squared_norm(logits: Tensor, direction: Tensor, token: Tensor) -> Tensor:
    """‖J_iᵀ direction‖² for every token i."""
    (gradient,) = torch.autograd.grad(logits, token, direction, retain_graph=True)
    return gradient.detach().float().square().sum(-1)


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
