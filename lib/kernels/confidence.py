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
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.kernels import describe, on_gpu

SCORES = ("probability", "margin", "entropy")
GIVEN = "given"  # the score of `token_probability`
PIECE = 2**16  # float64 logits at once: half a megabyte, what a core's own cache holds
HEAD_PIECE = 2**24  # logits at once that the head gives, in its dtype: with fewer rows the multiplication is slow
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FUSED_ROWS = 64  # up to so many positions the head is bound by reading its weights, and the fused kernel is used


@torch.no_grad()
def confidence(
    logits: Float[Tensor, "*batch vocab"],
    at: Bool[Tensor, "*batch"] | None = None,
    score: str = "probability",
    forbidden: int | None = None,
) -> tuple[Int[Tensor, "*asked"], Float[Tensor, "*asked"]]:
    """Arg-max token (int64) of each position, and how sure the model is of it: higher is surer.

    at         Positions asked for. Given: the results are [asked], row-major. None: all, and the results are [*batch].
    score      "probability": the arg-max's softmax probability p₁. "margin": p₁ − p₂, p₂ that of the second. "entropy":
               Σ p log p, minus the entropy in nats. The three of Dream's sampler (arXiv 2508.15487).
    forbidden  Index whose logit counts as −inf; one beyond the vocabulary has no effect.

    Sureness is float64 from torch, to float64 rounding that of `logits.double().softmax(-1)`; float32 from the kernel,
    which is used for CUDA tensors but float64 ones. A batch that is not one block of rows is copied first.

    Raises ValueError for other shapes, dtypes, scores, or a `forbidden` below 0.
    """
    _check("logits", logits, at, score, forbidden)
    token, sureness = _scan(*_rows(logits, at), score, forbidden)
    return _shaped(token, logits, at), _shaped(sureness, logits, at)


@torch.no_grad()
def token_probability(
    logits: Float[Tensor, "*batch vocab"],
    token: Int[Tensor, "*asked"],
    at: Bool[Tensor, "*batch"] | None = None,
    forbidden: int | None = None,
) -> Float[Tensor, "*asked"]:
    """Softmax probability of a given token at each position; `token` has the shape of the result.

    Shapes, `forbidden` (whose probability is 0), dtypes and errors as in `confidence`. ValueError too for a `token` of
    another shape, not of integers, or outside the vocabulary.
    """
    _check("logits", logits, at, "probability", forbidden)
    flat, rows = _rows(logits, at)
    shape = logits.shape[:-1] if at is None else rows.shape
    if not isinstance(token, Tensor) or token.dtype not in (torch.int64, torch.int32) or token.shape != shape:
        raise ValueError(f"token is {describe(token)}; allowed are int64 and int32 of shape {list(shape)}.")
    if token.numel() and not 0 <= token.min() <= token.max() < logits.shape[-1]:
        raise ValueError(f"token is {token.min()} to {token.max()}; allowed are 0 to {logits.shape[-1] - 1}.")
    _, probability = _scan(flat, rows, GIVEN, forbidden, token.reshape(-1).long())
    return _shaped(probability, logits, at)


@torch.no_grad()
def head_confidence(
    hidden: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, "vocab dim"],
    at: Bool[Tensor, "*batch"] | None = None,
    score: str = "probability",
    forbidden: int | None = None,
) -> tuple[Int[Tensor, "*asked"], Float[Tensor, "*asked"]]:
    """As `confidence` of the logits `hidden @ weight.T`, which are never held for all positions.

    Logits are in the dtype of the two, a piece of positions at a time. On CUDA, up to `FUSED_ROWS` positions in half
    precision take a kernel that writes no logits at all, and keeps them in float32.

    Raises ValueError as `confidence`, and for a `weight` that does not fit `hidden` in shape, dtype or device.
    """
    _check("hidden", hidden, at, score, forbidden)
    fits = isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == hidden.shape[-1]
    if not fits or not len(weight) or weight.dtype != hidden.dtype or weight.device != hidden.device:
        raise ValueError(
            f"weight is {describe(weight)}; allowed is {hidden.dtype} [vocab, {hidden.shape[-1]}] on "
            f"{hidden.device} with vocab at least 1."
        )
    flat, rows = _rows(hidden, at)
    asked = len(flat) if rows is None else len(rows)
    if on_gpu(hidden) and hidden.dtype in (torch.bfloat16, torch.float16) and asked <= FUSED_ROWS:
        from lib.kernels.confidence_triton import scan_head

        found = [scan_head(flat, weight, rows, score, forbidden)]
    else:
        picked = flat if rows is None else flat.index_select(0, rows)
        pieces = max(1, -(-asked // max(1, HEAD_PIECE // len(weight))))
        found = [_scan(F.linear(piece, weight), None, score, forbidden) for piece in picked.tensor_split(pieces)]
    return tuple(_shaped(torch.cat(parts), hidden, at) for parts in zip(*found, strict=True))


def _rows(x: Tensor, at: Tensor | None) -> tuple[Float[Tensor, "row last"], Int[Tensor, " asked"] | None]:
    """The batch as rows, and the numbers of those asked for; None: all."""
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return flat, None if at is None else at.reshape(-1).nonzero()[:, 0]


def _shaped(found: Tensor, x: Tensor, at: Tensor | None) -> Tensor:
    return found.reshape(x.shape[:-1]) if at is None else found


def _scan(
    flat: Tensor, rows: Tensor | None, score: str, forbidden: int | None, given: Tensor | None = None
) -> tuple[Int[Tensor, " asked"], Float[Tensor, " asked"]]:
    """Token and sureness of the rows asked for, by the kernel or in pieces by torch."""
    if on_gpu(flat) and flat.dtype in KERNEL_DTYPES:
        from lib.kernels.confidence_triton import scan

        return scan(flat, rows, score, forbidden, given)
    vocab = flat.shape[1]
    asked = len(flat) if rows is None else len(rows)
    # Even pieces, so all of one row or none: torch sums a single row in another order, where there are more threads.
    pieces = max(1, asked // max(1, PIECE // vocab))
    held = flat.new_empty(-(-asked // pieces), vocab, dtype=torch.float64)
    found = []
    for first, last in pairwise(asked * k // pieces for k in range(pieces + 1)):
        if rows is None:
            picked = flat[first:last]
        elif last - first == 1:
            picked = flat.narrow(0, rows[first], 1)  # a view
        else:
            picked = flat.index_select(0, rows[first:last])
        wanted = None if given is None else given[first:last]
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


def _check(name: str, x: Tensor, at: Tensor | None, score: str, forbidden: int | None) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0 or not x.shape[-1]:
        last = "vocab" if name == "logits" else "dim"
        raise ValueError(f"{name} is {describe(x)}; allowed is floating [*batch, {last}] with {last} at least 1.")
    fits = isinstance(at, Tensor) and at.dtype == torch.bool and at.shape == x.shape[:-1] and at.device == x.device
    if at is not None and not fits:
        raise ValueError(f"at is {describe(at)}; allowed is torch.bool {list(x.shape[:-1])} on {x.device}, or None.")
    if score not in SCORES:
        raise ValueError(f"score is {score!r}; allowed are {', '.join(SCORES)}.")
    if forbidden is not None and (not isinstance(forbidden, int) or isinstance(forbidden, bool) or forbidden < 0):
        raise ValueError(f"forbidden is {forbidden!r}; allowed are integers from 0, or None.")
