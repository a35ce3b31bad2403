"""Surprise of the targets and its gradient in the logits, by Triton: one program a row, two passes over the vocabulary.

Online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867): the first pass keeps maximum and sum block by block.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2**15


def surprise_(
    logits: Float[Tensor, "row vocab"], target: Int[Tensor, " row"], gradient: bool
) -> Float[Tensor, " row"]:
    """−log softmax(logits)[target] by row, float32; with `gradient` the logits become softmax − one-hot in place.

    Logits of up to float32, a row's side by side in memory. A target outside the vocabulary gives NaN. Not finite
    logits as in `lib.kernels.loss`. Raises ValueError for logits with another layout.
    """
    rows, vocab = logits.shape
    if logits.stride(1) != 1 and vocab > 1:
        raise ValueError(f"logits has strides {list(logits.stride())}: the last must be 1")
    surprise = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(triton.next_power_of_2(vocab), BLOCK)
    if rows:
        _surprise_kernel[(rows,)](
            logits,
            target.contiguous(),
            surprise,
            logits.stride(0),
            vocab,
            GRADIENT=gradient,
            BLOCK=block,
            num_warps=min(32, max(4, block // 1024)),
        )
    return surprise


@triton.jit
@no_type_check
def _surprise_kernel(
    logits,  # [row, vocab] of up to float32, `stride` from row to row; read, and written where GRADIENT
    target,  # [row] integers
    surprise,  # [row] float32; written
    stride,
    vocab,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    goal = tl.load(target + row)
    at_goal = tl.load(logits + goal, mask=(goal >= 0) & (goal < vocab), other=float("nan")).to(tl.float32)

    peak = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < vocab, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(x, 0))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # nothing but −inf so far: the sum is zero, not NaN
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(x - base), 0)
        peak = higher
    tl.store(surprise + row, tl.log(total) + (peak - at_goal))

    if GRADIENT:
        for start in range(0, vocab, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(logits + column, mask=column < vocab, other=-float("inf")).to(tl.float32)
            p = tl.exp(x - peak) / total
            error = tl.where(column == goal, p - 1, p)
            tl.store(logits + column, error.to(logits.dtype.element_ty), mask=column < vocab)
