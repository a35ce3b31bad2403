"""Sums of bootstrap resamples, each draw made from its own counters where it is added; see `bootstrap`."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

RESAMPLES, COLUMNS, VALUES = 8, 8, 1024  # a program's fewest resamples, most columns, and values read at once


def resampled_sums(samples: Tensor, resamples: int, seed: int) -> Tensor:
    """Sums [resamples, column] float64 of n rows of `samples` [n, column], drawn with replacement.

    Draws 2k and 2k + 1 of resample r are the two 64-bit words x of Philox4x32-10 (Salmon et al., 2011) with key `seed`
    and counter (k, r, 0, 0), the more significant half first, and take row ⌊x n / 2^64⌋.
    """
    samples = samples.to(torch.float64).contiguous()
    n, columns = samples.shape
    out = torch.empty(resamples, columns, dtype=torch.float64, device=samples.device)
    width = min(triton.next_power_of_2(max(1, columns)), COLUMNS)
    pairs = min(triton.next_power_of_2((n + 1) // 2), VALUES // (RESAMPLES * width))
    rows = VALUES // (pairs * width)
    if columns:
        _resampled_sums[(triton.cdiv(resamples, rows), triton.cdiv(columns, width))](
            samples,
            out,
            n,
            columns,
            resamples,
            seed,
            RESAMPLES=rows,
            COLUMNS=width,
            PAIRS=pairs,
        )
    return out


@triton.jit(do_not_specialize=["n", "columns", "resamples", "seed"])
@no_type_check
def _resampled_sums(
    samples_ptr,  # [n, columns] float64
    out_ptr,  # [resamples, columns] float64
    n,
    columns,
    resamples,
    seed,
    RESAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    resample = tl.program_id(0) * RESAMPLES + tl.arange(0, RESAMPLES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    key = tl.zeros((RESAMPLES, PAIRS), tl.int32)
    rows = tl.zeros((RESAMPLES, PAIRS), tl.uint64) + n
    total = tl.zeros((RESAMPLES, COLUMNS), tl.float64)
    for start in range(0, n, 2 * PAIRS):
        pair = start // 2 + tl.arange(0, PAIRS)
        a, b, c, d = tl.philox(seed, key + pair[None, :], key + resample[:, None], key, key)
        first = tl.umulhi((a.to(tl.uint64) << 32) | b.to(tl.uint64), rows).to(tl.int64)
        second = tl.umulhi((c.to(tl.uint64) << 32) | d.to(tl.uint64), rows).to(tl.int64)
        wanted = (2 * pair < n)[None, :, None] & (column < columns)
        total += tl.sum(tl.load(samples_ptr + first[:, :, None] * columns + column, mask=wanted, other=0.0), 1)
        wanted = (2 * pair + 1 < n)[None, :, None] & (column < columns)
        total += tl.sum(tl.load(samples_ptr + second[:, :, None] * columns + column, mask=wanted, other=0.0), 1)
    place = resample.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(out_ptr + place, total, mask=(resample < resamples)[:, None] & (column < columns)[None, :])
