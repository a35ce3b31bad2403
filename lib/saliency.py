"""Which vision tokens carry the output: the Fisher–Jacobian score of DiSP, exact or estimated, and random scores.

Other scores to compare it with are in `saliency_rivals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.config import generator
from lib.kernels import describe
from lib.kernels.fisher import NOISES, add_squared_norm, fisher_probe, fisher_probes, signs
from lib.recomputing import recomputed

DEALT = "dealt"
TAIL = 1e-5  # share of the response's Fisher trace that the exact score may leave out
ENTRIES = 8  # most probable tokens of a position whose directions are dealt to the probes one by one
HEAVY = 32  # directions of a sample dealt by their weight; the others in turn


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

    noise  "sign" or "normal": independent probes, see `fisher_probes`. "dealt": every direction of F in one probe
           only, the heaviest apart from each other, see `dealt_noise`: with 3 or 4 probes somewhat nearer to the exact
           score (benchmarks/saliency.py), but drawn on the CPU.
    exact  Takes the eigenvectors of F, as `model.head.weight` sees it where there is one, in turn: one backward pass
           each, until what is left out is below `TAIL` of the whole.

    `model` gives `logits(vision, prompt, response)`, `config.mask_id` and `config.response_length`; where it has a
    `head.weight` [vocab, width], the logits must be linear in what that is multiplied with.
    Returns non-negative scores. Raises ValueError for wrong shapes, dtypes, NaN, `probes` below 1, other noises.
    """
    check_inputs(vision, prompt)
    check_probes(probes)
    if noise not in (*NOISES, DEALT):
        raise ValueError(f"noise={noise!r} must be one of {', '.join((*NOISES, DEALT))}")
    score = torch.zeros(vision.shape[:2], device=vision.device)
    if not len(vision):
        return score
    with recomputed(model) as again:
        with torch.enable_grad():
            token = vision.detach().clone().requires_grad_()
            logits = model.logits(token, prompt, masked_response(model, vision)).float()
        if exact:
            cotangents = _eigenvectors(logits.detach(), _head(model))
        elif noise == DEALT:
            p = logits.detach().softmax(-1)
            cotangents = fisher_probe(p, dealt_noise(p, probes, seed, _head(model)))
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


@torch.no_grad()
def dealt_noise(
    p: Float[Tensor, "batch position vocab"],
    probes: int,
    seed: int,
    weight: Float[Tensor, "vocab width"] | None = None,
) -> Float[Tensor, "probe batch position vocab"]:
    """Noise of few probes, the sum of whose covariances is I, made so that heavy directions of F do not interfere.

    At each position F has the factor R = diag(√p) (I − 1 pᵀ), F = Rᵀ R. The rows of R of its `ENTRIES` most probable
    tokens are turned to the eigenvectors of R Rᵀ, or of R W (R W)ᵀ with the output embeddings W = `weight`, whose
    eigenvalues say how much each direction moves what comes before. A sample's `HEAVY` heaviest directions, over all
    positions, are dealt to the probes, each to the one that carries least so far; the lighter ones and the other
    tokens' are dealt in turn. Within a probe the signs are random. What makes Hutchinson's estimate noisy, the products
    of gradients along different directions, is then left only within a probe, and between light ones.
    """
    batch, positions, vocab = p.shape
    entries = min(ENTRIES, vocab)
    top, index = p.topk(entries, -1)
    if weight is None:
        norm = p.square().sum(-1)[..., None, None]
        gram = torch.eye(entries, device=p.device) - top[..., None] - top[..., None, :] + norm
    else:
        away = weight[index] - (p @ weight)[..., None, :]
        gram = (away @ away.mT).float()
    gram = gram * (top[..., None] * top[..., None, :]).sqrt()
    heaviness, turn = torch.linalg.eigh(gram.nan_to_num())  # turn: [batch, position, entry, direction]

    draw = generator(seed, "dealt probes")
    sign = signs((batch, positions, entries), draw).to(p)
    probe = _deal(heaviness.flatten(1), probes).view(batch, positions, entries)
    light = signs(p.shape, draw).to(p)
    noise = p.new_zeros(probes, *p.shape)
    for k, epsilon in enumerate(noise):
        epsilon[..., k::probes] = light[..., k::probes]
        epsilon.scatter_(-1, index, (turn * (sign * (probe == k))[..., None, :]).sum(-1))
    return noise


def _deal(weight: Float[Tensor, "batch direction"], hands: int) -> Int[Tensor, "batch direction"]:
    """Which hand each direction goes to: the heaviest in turn to the hand with the least, the others round by round."""
    weight, order = weight.clamp(min=0).sort(1, descending=True)
    hand = (torch.arange(weight.shape[1], device=weight.device) % hands).repeat(len(weight), 1)
    held = weight.new_zeros(len(weight), hands)
    for k in range(min(HEAVY, weight.shape[1])):
        least = held.argmin(1, keepdim=True)
        held.scatter_add_(1, least, weight[:, k : k + 1])
        hand[:, k : k + 1] = least
    return torch.empty_like(hand).scatter_(1, order, hand)


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


def masked_response(model, vision: Float[Tensor, "batch vision dim"]) -> Int[Tensor, "batch response"]:
    """The first step's response: nothing but mask tokens."""
    return torch.full((len(vision), model.config.response_length), model.config.mask_id, device=vision.device)


def check_inputs(vision: Tensor, prompt: Tensor) -> None:
    """Raises ValueError unless they are floating [batch, vision, dim] without NaN, and integers [batch, prompt]."""
    if not isinstance(vision, Tensor) or vision.ndim != 3 or not vision.is_floating_point():
        raise ValueError(f"vision must be floating [batch, vision, dim], not {describe(vision)}")
    integers = isinstance(prompt, Tensor) and not prompt.is_floating_point() and prompt.dtype != torch.bool
    if not integers or prompt.ndim != 2:
        raise ValueError(f"prompt must be integers [batch, prompt], not {describe(prompt)}")
    if len(prompt) != len(vision):
        raise ValueError(f"prompt has {len(prompt)} rows for {len(vision)} of vision: they must be equal")
    if bool(vision.isnan().any()):
        raise ValueError("vision holds NaN")


def check_probes(probes: int) -> None:
    """Raises ValueError unless it is an integer of at least 1."""
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes={probes!r} must be an integer of at least 1")
