"""How sure a model is of its next token: arg-max and score, or the probability of a given token, from logits.

No softmax is written: per row only the maximum m, the sum Σ exp(x − m) and what the score needs. The torch path counts
in float64, in pieces of rows that fit a core's cache; the kernel reads each logit once, and counts in float32.

Policy, everywhere below: a single −inf is a probability of 0; NaN anywhere in a row (at `forbidden` too), +inf (but at
`forbidden`), or a row of nothing but −inf gives a sureness of NaN and some token in range. Ties take the lowest index.
No gradient flows. Equal rows of logits in one call get equal sureness, to the bit.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels import describe, on_gpu

SCORES = ("probability", "margin", "entropy")
GIVEN = "given"  # the score of `token_probability`
PIECE = 2**16  # float64 logits at once: half a megabyte, what a core's own cache holds
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@torch.no_grad()
def confidence(
    logits: Float[Tensor, "*batch vocab"], score: str = "probability", forbidden: int | None = None
) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Arg-max token (int64) of each position, and how sure the model is of it: higher is surer.

    score      "probability": the arg-max's softmax probability p₁. "margin": p₁ − p₂, p₂ that of the second. "entropy":
               Σ p log p, minus the entropy in nats. The three of Dream's sampler (arXiv 2508.15487).
    forbidden  Index whose logit counts as −inf; one beyond the vocabulary has no effect.

    Sureness is float64 from torch, to float64 rounding that of `logits.double().softmax(-1)`; float32 from the kernel,
    which is used for CUDA tensors but float64 ones. A batch that is not one block of rows is copied first.

    Raises ValueError for other shapes, dtypes, scores, or a `forbidden` below 0.
    """
    _check(logits, score, forbidden)
    token, sureness = _scan(_rows(logits), score, forbidden)
    return token.reshape(logits.shape[:-1]), sureness.reshape(logits.shape[:-1])


@torch.no_grad()
def token_probability(
    logits: Float[Tensor, "*batch vocab"], token: Int[Tensor, "*batch"], forbidden: int | None = None
) -> Float[Tensor, "*batch"]:
    """Softmax probability of a given token at each position.

    `forbidden` (whose probability is 0), dtypes and errors as in `confidence`. ValueError too for a `token` of
    another shape, not of integers, or outside the vocabulary.
    """
    _check(logits, "probability", forbidden)
    shape = logits.shape[:-1]
    if not isinstance(token, Tensor) or token.dtype not in (torch.int64, torch.int32) or token.shape != shape:
        raise ValueError(f"token is {describe(token)}; allowed are int64 and int32 of shape {list(shape)}.")
    if token.numel() and not 0 <= token.min() <= token.max() < logits.shape[-1]:
        raise ValueError(f"token is {token.min()} to {token.max()}; allowed are 0 to {logits.shape[-1] - 1}.")
    _, probability = _scan(_rows(logits), GIVEN, forbidden, token.reshape(-1).long())
    return probability.reshape(shape)


def _rows(x: Tensor) -> Float[Tensor, "row last"]:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _scan(
    flat: Tensor, score: str, forbidden: int | None, given: Tensor | None = None
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Token and sureness of each row, by the kernel or in pieces by torch."""
    if on_gpu(flat) and flat.dtype in KERNEL_DTYPES:
        from lib.kernels.confidence_triton import scan

        return scan(flat, score, forbidden, given)
    rows, vocab = flat.shape
    # Even pieces, so all of one row or none: torch sums a single row in another order, where there are more threads.
    pieces = max(1, rows // max(1, PIECE // vocab))
    held = flat.new_empty(-(-rows // pieces), vocab, dtype=torch.float64)
    found = []
    for first, last in pairwise(rows * k // pieces for k in range(pieces + 1)):
        picked, wanted = flat[first:last], None if given is None else given[first:last]
        found.append(_score(held[: last - first].copy_(picked), picked, score, forbidden, wanted))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _score(
    x: Float[Tensor, "row vocab"],
    raw: Float[Tensor, "row vocab"],
    score: str,
    forbidden: int | None,
    given: Tensor | None,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Token and sureness of float64 logits, which are overwritten; `raw` are the same as they came."""
    if forbidden is not None:
        column = x[:, forbidden : forbidden + 1]
        column.masked_fill_(~column.isnan(), -math.inf)
    if raw.dtype == torch.float32:  # half the bytes to read
        token = _argmax(raw)
        if forbidden is not None and (again := token == forbidden).any():
            token[again] = _argmax(x[again])
    else:
        token = _argmax(x)
    x -= x.gather(1, token[:, None])
    if score == "entropy":
        below = x.clamp_(min=-800)  # exp(−800) is 0, and 0 · −800 too
        weight = below.exp()
        total = weight.sum(1)
        return token, below.mul_(weight).sum(1) / total - total.log()
    weight = x.exp_()
    total = weight.sum(1)
    if score == "margin":
        return token, (1 - weight.scatter_(1, token[:, None], 0).amax(1)) / total
    if score == GIVEN:
        return token, weight.gather(1, given[:, None])[:, 0] / total
    return token, total.reciprocal()


def _argmax(x: Float[Tensor, "*row vocab"]) -> Int[Tensor, "*row"]:
    """The first of equals, and NaN before all; on a CPU by NumPy, four times as fast as torch."""
    return torch.as_tensor(x.detach().numpy().argmax(-1)) if x.is_cpu else x.argmax(-1)


def _check(logits: Tensor, score: str, forbidden: int | None) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim == 0 or not logits.shape[-1]:
        raise ValueError(f"logits is {describe(logits)}; allowed is floating [*batch, vocab] with vocab at least 1.")
    if score not in SCORES:
        raise ValueError(f"score is {score!r}; allowed are {', '.join(SCORES)}.")
    if forbidden is not None and (not isinstance(forbidden, int) or isinstance(forbidden, bool) or forbidden < 0):
        raise ValueError(f"forbidden is {forbidden!r}; allowed are integers from 0, or None.")
