"""Weighted cross-entropy of the masked positions from hidden states and head, a chunk of logits at a time.

Gradients are computed during the forward pass while a chunk's logits are at hand, as in Liger-Kernel's fused linear
cross-entropy (Hsu et al. 2024, arXiv 2410.10989). Liger-Kernel 0.8.5 and torch 2.13's `F.linear_cross_entropy` take a
weight per position only by reduction="none", for which they compute all logits a second time in backward; with the
weights known beforehand, as here, three matrix products do instead of four. Liger's does not run without a GPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.kernels import describe, on_gpu

# Logits of a chunk, and its fewest positions; it has less than twice as many. The gradient of the head is read and
# written once a chunk, so that chunks as small as the second-level cache are slower than none (measured).
LOGITS = {"cpu": 2**23, "cuda": 2**28}
POSITIONS = 256
EAGER = 2**17  # with fewer logits than this, plain autograd is the faster on a CPU (measured)


def weighted_cross_entropy(
    hidden: Float[Tensor, "position dim"],
    weight: Float[Tensor, "vocab dim"],
    target: Int[Tensor, " position"],
    scale: Float[Tensor, " position"],
) -> Float[Tensor, ""]:
    """Σ_i scale_i · (−log softmax(weight @ hidden_i)[target_i]), in nats: 0 where there is no position.

    With the masked positions and scale = 1 / (t · batch · length) it is LLaDA's objective (Nie et al. 2025, eq. 5).

    hidden, weight  One floating dtype, or what autocast casts to one: the matrix products run in it, everything
                    between them in float32, or float64 where the inputs are. The loss is float32 or float64,
                    gradients have the dtypes of hidden and weight.
    target          Any integer dtype, 0 ≤ target < vocab; it has no gradient.
    scale           Taken as a constant: any numbers, of any floating dtype.

    Inputs that are not finite give what `F.cross_entropy` of the logits would: NaN and +∞ logits a NaN loss, −∞ a
    probability of 0 (so an infinite loss at the target), a row of −∞ NaN; a NaN state is NaN in its own gradient and
    in the head's. Backward runs as often as the graph is kept; with create_graph it raises RuntimeError, unless there
    are so few logits on a CPU that plain autograd is taken.

    Raises ValueError for wrong shapes or dtypes, a scale that requires a gradient, and a target outside the
    vocabulary; on a GPU, where looking would wait for it, such a target makes Triton's loss NaN.
    """
    dtypes = _product_dtype(hidden), _product_dtype(weight)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not len(weight):
        raise ValueError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [position, dim] and [vocab, dim]"
        )
    if not hidden.is_floating_point() or not weight.is_floating_point() or dtypes[0] != dtypes[1]:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}: they must have one floating dtype")
    if target.shape != hidden.shape[:1] or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(f"target is {describe(target)}: it must be integers [position] = {list(hidden.shape[:1])}")
    if scale.shape != hidden.shape[:1] or not scale.is_floating_point():
        raise ValueError(f"scale is {describe(scale)}: it must be floating [position] = {list(hidden.shape[:1])}")
    if scale.requires_grad:
        raise ValueError("scale requires a gradient, which it does not get here: detach it")
    if not target.is_cuda and len(target):
        low, high = (end.item() for end in target.aminmax())
        if low < 0 or high >= len(weight):
            raise ValueError(f"target holds {low if low < 0 else high}: it must be in [0, {len(weight)})")
    if hidden.device.type == "cpu" and len(hidden) * len(weight) < EAGER:
        logits = F.linear(hidden, weight).to(_exact(dtypes[0]))
        return (F.cross_entropy(logits, target.long(), reduction="none") * scale.to(logits.dtype)).sum()
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    return _WeightedCrossEntropy.apply(hidden, weight, target.long(), scale, dtypes[0])


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, scale, dtype):
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        ctx.dtypes = hidden.dtype, weight.dtype
        exact = _exact(dtype)
        columns = hidden.to(dtype), target[:, None], scale.to(exact)[:, None]
        head, chunks = weight.to(dtype), _chunks(len(hidden), len(weight), hidden.device.type)
        loss, grad_hidden, grad_weight = columns[2].new_zeros(()), [], None
        for x, y, s in zip(*(column.chunk(chunks) for column in columns), strict=True):
            surprise, error = _surprise(F.linear(x, head), y, for_hidden or for_weight)
            loss += (surprise * s).sum()
            if for_hidden:
                grad_hidden.append(error @ head * s)
            if for_weight:
                grad_weight = _add_product(grad_weight, error.T, (x * s).to(dtype), exact)
        ctx.save_for_backward(torch.cat(grad_hidden) if grad_hidden else None, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():
            raise RuntimeError("weighted_cross_entropy has no second derivative: call backward without create_graph")
        if not upstream.is_cuda and upstream == 1:  # on a GPU, looking would wait for it
            upstream = None
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(_times(gradient, upstream, dtype) for gradient, dtype in pairs), None, None, None


def _surprise(
    logits: Float[Tensor, "position vocab"], target: Int[Tensor, "position 1"], gradient: bool
) -> tuple[Float[Tensor, "position 1"], Float[Tensor, "position vocab"]]:
    """−log softmax(logits)[target] by row; with `gradient` also what it is in the logits, softmax − one-hot.

    The logits may be overwritten. The first is float32 at least, the second of the logits' dtype.
    """
    if on_gpu(logits) and logits.dtype != torch.float64:
        from lib.kernels.loss_triton import surprise_

        return surprise_(logits, target[:, 0], gradient)[:, None], logits
    log_p = logits.to(_exact(logits.dtype))
    torch.log_softmax(log_p, 1, out=log_p)
    surprise = -log_p.gather(1, target)
    if not gradient:
        return surprise, logits
    error = log_p.exp_().scatter_(1, target, -1.0, reduce="add")
    return surprise, error.to(logits.dtype)


def _chunks(positions: int, vocab: int, device: str) -> int:
    """In how many chunks, equal but for the last, to take the positions."""
    return max(1, min(positions * vocab // LOGITS.get(device, LOGITS["cpu"]), positions // POSITIONS))


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total + left @ right in `dtype`, in the memory of total; None counts as zeros."""
    if total is None:
        return (left @ right).to(dtype)
    if left.dtype == dtype:
        return total.addmm_(left, right)
    if left.is_cuda:
        return torch.addmm(total, left, right, out_dtype=dtype, out=total)
    return total.add_(left @ right)


def _times(gradient: Tensor | None, upstream: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """gradient · upstream in `dtype`, where an upstream of None is one; the saved gradient is not written."""
    if gradient is None or upstream is None:
        return gradient if gradient is None else gradient.to(dtype)
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))


def _product_dtype(x: Tensor) -> torch.dtype:
    """What `F.linear` would compute in: autocast leaves float64 alone."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What sums and the softmax run in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
