"""Which vision tokens carry the output: the Fisher–Jacobian score of DiSP, exact or estimated.

Other scores to compare it with are in `lib.saliency.rivals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.kernels.fisher import NOISES, add_squared_norm, fisher_probes
from lib.runtime.devices import recomputed
from lib.saliency.exact import eigenvectors, highest_logits, pushed_forward
from lib.saliency.masking import check_inputs, check_probes, masked_response

DIRECTIONS = ("mask", "all")


def fisher_jacobian(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    *,
    direction: str = "mask",
    probes: int = 6,
    seed: int = 0,
    exact: bool = False,
    noise: str = "sign",
    top_logits: int | None = None,
    positions: Bool[Tensor, "*batch response"] | None = None,
) -> Float[Tensor, "batch vision"]:
    """½ δ_iᵀ J_iᵀ F J_i δ_i for every vision token i, at the first denoising step (the response fully masked).

    J_i is the Jacobian of the response's logits with respect to token i's embedding e_i, F = diag(p) − p pᵀ the softmax
    Fisher matrix of each response position, and δ_i = e_mask − e_i: the second-order term of KL(p ‖ p with token i
    masked), summed over response positions (arXiv 2602.22246, and its authors' code).

    Estimated by `probes` vectors g = √p ∘ ε − p ⟨√p, ε⟩ of covariance F, from noise ε of covariance I: the mean of
    ½ ⟨J_iᵀ g, δ_i⟩² is unbiased. It costs one forward pass and `probes` backward passes; of a published model, whose
    activations are not kept, one pass more, see `pulled_back`. The noise of a sample depends on `seed` and its place in
    the batch.

    direction   "mask": as above. "all": the trace tr(J_iᵀ F J_i), over all directions.
    exact       Without noise. "mask": a forward-mode pass per token. "all": a backward pass per eigenvector of F, as
                `model.head.weight` sees it where there is one.
    noise       "sign" or "normal", see `fisher_probes`. The authors' is normal.
    top_logits  F of that many highest logits of each position, renormalised, in the place of the whole vocabulary. The
                authors' is 5.
    positions   Which positions of the response count, of every sample or of all, see `first_positions`. None: each. All
                is masked at the first step, so that those where an end or fill will stand count as any other, in the
                authors' code too, which counts the first block; a longer response gives another score.

    `model` gives `logits(vision, prompt, response)`, `config.mask_id` and `config.response_length`; for "mask"
    `mask_embedding` [dim]. For "all", exact, the logits must be linear in what `head.weight` [vocab, width] is
    multiplied with, where it has one.
    Returns non-negative scores. Raises ValueError for wrong shapes, dtypes, NaN, `probes` or `top_logits` below 1,
    other noises or directions, and `top_logits` of the exact trace.
    """
    check_inputs(vision, prompt)
    check_estimator(direction, probes, noise, top_logits)
    if exact and top_logits and direction == "all":
        raise ValueError(f"top_logits={top_logits} must be None for the exact trace: direction='all', exact=True")
    counted = counted_positions(positions, model, vision)
    score = torch.zeros(vision.shape[:2], device=vision.device)
    if not len(vision):
        return score
    if exact and direction == "mask":
        return pushed_forward(model, vision, prompt, to_mask(model, vision), top_logits, counted)
    with recomputed(model) as again:
        with torch.enable_grad():
            token = vision.detach().clone().requires_grad_()
            logits = model.logits(token, prompt, masked_response(model, vision))
        if exact:
            logits = logits.float()
            cotangents = eigenvectors(logits.detach(), _head(model))
        else:
            logits, cotangents = probed(logits, probes, seed, noise, top_logits)
        weighted = (cotangent * counted for cotangent in cotangents)
        delta = to_mask(model, vision) if direction == "mask" else None
        for (gradient,) in pulled_back(logits, (token,), weighted, together=again and not exact):
            add_curvature(score, gradient, delta)
    return score


def probed(
    logits: Float[Tensor, "batch position vocab"], probes: int, seed: int, noise: str, top_logits: int | None
) -> tuple[Float[Tensor, "batch position _"], Float[Tensor, "probe batch position _"]]:
    """The logits that count, all or each position's highest, and cotangents of covariance F / `probes` to them."""
    with torch.enable_grad():
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if top_logits:
            logits = logits.gather(-1, highest_logits(logits, top_logits))
    return logits, fisher_probes(logits.detach(), probes, seed, noise) / probes**0.5


def to_mask(model, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
    """δ: from every token's embedding to the mask token's."""
    return model.mask_embedding.detach().to(tokens) - tokens.detach()


def add_curvature(
    score: Float[Tensor, "batch token"],
    gradient: Float[Tensor, "batch token dim"],
    delta: Float[Tensor, "batch token dim"] | None,
) -> None:
    """score += ½ ⟨gradient, delta⟩² of every token, or without `delta` ‖gradient‖²; counted in float32 at least."""
    if delta is None:
        add_squared_norm(score, gradient)
        return
    counted = torch.promote_types(gradient.dtype, torch.float32)
    along = torch.einsum("btd,btd->bt", gradient.to(counted), delta.to(counted))
    score.add_(along.square(), alpha=0.5)


def pulled_back(
    logits: Float[Tensor, "batch position vocab"],
    tokens: tuple[Float[Tensor, "batch _ dim"], ...],
    cotangents: Iterable[Float[Tensor, "batch position vocab"]],
    *,
    together: bool,
) -> Iterator[tuple[Float[Tensor, "batch _ dim"], ...]]:
    """Jᵀ g for every cotangent g, with J the Jacobian of `logits` with respect to each of `tokens`.

    together  All in one batched backward pass: what was not kept is computed again once and not for every cotangent,
              at the price of one layer's gradients of all at a time. Otherwise one pass after another: of activations
              that are kept two thirds of the time on a CPU.
    """
    if together:
        stacked = torch.stack(list(cotangents))
        yield from zip(*torch.autograd.grad(logits, tokens, stacked, is_grads_batched=True), strict=True)
        return
    for cotangent in cotangents:
        yield torch.autograd.grad(logits, tokens, cotangent, retain_graph=True)


def first_positions(model, block: int | None) -> Bool[Tensor, " response"] | None:
    """The first `block` positions of the model's response, as `Estimator.block` counts them; None: all.

    Raises ValueError for a block below 1 or longer than the response.
    """
    length = model.config.response_length
    if block is None:
        return None
    if not 1 <= block <= length:
        raise ValueError(f"block={block!r} must be None or from 1 to {length}, the response's length")
    return torch.arange(length) < block


def check_estimator(direction: str, probes: int, noise: str, top_logits: int | None) -> None:
    """Raises ValueError for what `fisher_jacobian` refuses of them."""
    check_probes(probes)
    for name, value, allowed in (("direction", direction, DIRECTIONS), ("noise", noise, NOISES)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
    if top_logits is not None and (type(top_logits) is not int or top_logits < 1):
        raise ValueError(f"top_logits={top_logits!r} must be None or an integer of at least 1")


def counted_positions(positions: Tensor | None, model, vision: Tensor) -> Float[Tensor, "*batch response 1"]:
    """1 where a position of the response counts, else 0."""
    length = model.config.response_length
    if positions is None:
        return torch.ones(length, 1, device=vision.device)
    if positions.dtype != torch.bool or tuple(positions.shape) not in ((length,), (len(vision), length)):
        shape = f"[{length}] or [{len(vision)}, {length}]"
        raise ValueError(f"positions must be bool {shape}, not {positions.dtype} {list(positions.shape)}")
    return positions.to(vision.device).float()[..., None]


def _head(model) -> Tensor | None:
    head = getattr(model, "head", None)
    return None if head is None else head.weight.detach().float()
