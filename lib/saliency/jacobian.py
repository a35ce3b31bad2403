"""Which vision tokens carry the output: the Fisher–Jacobian score of DiSP, exact or estimated.

Other scores to compare it with are in `lib.saliency.rivals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels.fisher import NOISES, add_squared_norm, fisher_probes
from lib.runtime.devices import recomputed
from lib.saliency.masking import check_inputs, check_probes, masked_response

TAIL = 1e-5  # share of the response's Fisher trace that the exact score may leave out


def fisher_jacobian(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    *,
    probes: int = 4,
    seed: int = 0,
    exact: bool = False,
    noise: str = "sign",
) -> Float[Tensor, "batch vision"]:
    """tr(J_iᵀ F J_i) for every vision token i, at the first denoising step (the response fully masked).

    J_i is the Jacobian of the response's logits with respect to token i's embedding and F = diag(p) − p pᵀ the
    softmax Fisher matrix of each response position, so the score is the curvature of the KL divergence of the
    output along perturbations of that token, summed over directions and response positions (arXiv 2602.22246).

    Estimated by Hutchinson's method: g = √p ∘ ε − p ⟨√p, ε⟩ with noise ε of covariance I has covariance F, so the
    mean over `probes` of ‖J_iᵀ g‖² is unbiased. It costs one forward pass and `probes` backward passes; of a published
    model, whose activations are not kept, one pass more, see `pulled_back`. The noise of a sample depends on `seed` and
    its place in the batch.

    noise  "sign" or "normal", see `fisher_probes`.
    exact  Takes the eigenvectors of F, as `model.head.weight` sees it where there is one, in turn: one backward pass
           each, until what is left out is below `TAIL` of the whole.

    `model` gives `logits(vision, prompt, response)`, `config.mask_id` and `config.response_length`; where it has a
    `head.weight` [vocab, width], the logits must be linear in what that is multiplied with.
    Returns non-negative scores. Raises ValueError for wrong shapes, dtypes, NaN, `probes` below 1, other noises.
    """
    check_inputs(vision, prompt)
    check_probes(probes)
    if noise not in NOISES:
        raise ValueError(f"noise={noise!r} must be one of {', '.join(NOISES)}")
    score = torch.zeros(vision.shape[:2], device=vision.device)
    if not len(vision):
        return score
    with recomputed(model) as again:
        with torch.enable_grad():
            token = vision.detach().clone().requires_grad_()
            logits = model.logits(token, prompt, masked_response(model, vision)).float()
        if exact:
            cotangents = _eigenvectors(logits.detach(), _head(model))
        else:
            cotangents = fisher_probes(logits, probes, seed, noise) / probes**0.5
        for (gradient,) in pulled_back(logits, (token,), cotangents, together=again and not exact):
            add_squared_norm(score, gradient)
    return score


def _head(model) -> Tensor | None:
    head = getattr(model, "head", None)
    return None if head is None else head.weight.detach().float()


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
        yield from zip(*torch.autograd.grad(logits, tokens, cotangents, is_grads_batched=True), strict=True)
        return
    for cotangent in cotangents:
        yield torch.autograd.grad(logits, tokens, cotangent, retain_graph=True)


def _eigenvectors(logits: Tensor, weight: Tensor | None) -> Iterator[Tensor]:
    """Cotangents [batch, position, vocab] u √λ, heaviest first, one at a position of every sample.

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
        own = p[rows, position]
        along = torch.stack([vector[at] for vector, at in zip(vectors, place, strict=True)]) @ basis.mT
        known = value[:, k] > 1e-12 * value[:, 0]
        scale = torch.where(known, value[:, k].rsqrt(), 0.0)[:, None]
        cotangent = torch.zeros_like(logits)
        cotangent[rows, position] = (scale * own * (along - (own * along).sum(1, keepdim=True))).to(logits)
        yield cotangent
