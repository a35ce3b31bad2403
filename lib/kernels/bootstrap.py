"""Means of bootstrap resamples: n rows drawn with replacement, without an index matrix for all resamples."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels import on_gpu

CHUNK = 2**15  # draws held at once on the CPU, so that they stay in its cache
GATHERED = 3  # columns up to which adding up the drawn values is faster than counting the rows drawn


@torch.no_grad()
def resampled_means(
    samples: Float[Tensor, "n columns"], resamples: int, seed: int, chunk: int = CHUNK
) -> Float[Tensor, "resamples columns"]:
    """Means of `resamples` bootstrap resamples of the rows (Efron, 1979), in float64 on the CPU.

    Each resample draws n rows, every row with probability 1/n each time, the same rows for all columns. The same
    `seed` gives the same draws: NumPy's default generator on a CPU, one row of counters per resample on a GPU
    (Philox, with probabilities that are off by less than n/2^64). `chunk` bounds the draws held at once on a CPU,
    which are those of one resample at least, and does not change them.

    Raises ValueError for no samples, a dtype that is not floating, samples that are not finite, fewer than one
    resample or draw at once, and a seed outside 0 … 2^63 − 1.
    """
    if samples.ndim != 2 or not len(samples) or not samples.is_floating_point():
        raise ValueError(f"samples is {samples.dtype} {list(samples.shape)}; allowed is floating [n, columns], n ≥ 1.")
    if not samples.isfinite().all():
        raise ValueError("samples holds NaN or infinity; allowed are finite numbers.")
    for name, value, bounds in (
        ("resamples", resamples, (1, 2**31)),
        ("seed", seed, (0, 2**63)),
        ("chunk", chunk, (1, 2**31)),
    ):
        if type(value) is not int or not bounds[0] <= value < bounds[1]:
            raise ValueError(f"{name} is {value!r}; allowed are the integers {bounds[0]} to {bounds[1] - 1}.")
    if on_gpu(samples):
        from lib.kernels.bootstrap_triton import resampled_sums

        return resampled_sums(samples, resamples, seed).cpu() / len(samples)
    n, columns = samples.shape
    values = samples.cpu().double().numpy()
    draw, size = np.random.default_rng(seed), max(1, chunk // n)
    sums = np.empty((resamples, columns))
    for start in range(0, resamples, size):
        part = sums[start : start + size]
        picked = draw.integers(n, size=(len(part), n))
        if columns <= GATHERED:
            for column in range(columns):
                values[:, column].take(picked).sum(1, out=part[:, column])
        else:
            picked += np.arange(0, picked.size, n)[:, None]
            part[:] = np.bincount(picked.ravel(), minlength=picked.size).reshape(picked.shape) @ values
    return torch.from_numpy(sums / n)
