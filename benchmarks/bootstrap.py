"""How fast is a percentile bootstrap of means, beside SciPy's, an index matrix, and counts by `scatter_add`?

10,000 resamples. `difference`: the largest one between the ends of two 95 % intervals, in widths of the interval.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from benchmarks.harness import main, pair
from lib.metrics.intervals import bootstrap_mean

RESAMPLES = 10_000
ENDS = [0.025, 0.975]


def rows(chosen: argparse.Namespace) -> list[dict]:
    peers = {"index matrix": by_index_matrix, "counts": by_counts, "scipy": by_scipy}
    made = []
    for n in (96, 3000):
        for columns in (1, 7):
            draw = torch.Generator().manual_seed(0)
            samples = torch.randn(n, columns, generator=draw).exp().to(chosen.device)
            for name, peer in peers.items():
                made.append(
                    pair(
                        f"n = {n}, {columns} columns",
                        lambda samples=samples: ours(samples),
                        lambda samples=samples, peer=peer: peer(samples),
                        chosen,
                        ("ours", name),
                        difference=difference(ours(samples), peer(samples)),
                    )
                )
    return made


def ours(samples: Tensor) -> Tensor:
    _, low, high = bootstrap_mean(samples, resamples=RESAMPLES)
    return torch.stack([low, high]).cpu()


def by_index_matrix(samples: Tensor) -> Tensor:
    """All draws at once, one column after another."""
    n = len(samples)
    picked = torch.randint(n, (RESAMPLES, n), device=samples.device)
    means = torch.stack([column[picked].mean(1) for column in samples.double().T.contiguous()], 1)
    return means.quantile(means.new_tensor(ENDS), 0).float().cpu()


def by_counts(samples: Tensor, held: int = 2**20) -> Tensor:
    """How often each row is drawn, for `held` draws at once, times the rows."""
    n, values, means = len(samples), samples.double(), []
    size = max(1, held // n)
    for start in range(0, RESAMPLES, size):
        picked = torch.randint(n, (min(size, RESAMPLES - start), n), device=samples.device)
        ones = torch.ones(picked.shape, dtype=torch.float64, device=samples.device)
        means.append(torch.zeros_like(ones).scatter_add_(1, picked, ones) @ values / n)
    found = torch.cat(means)
    return found.quantile(found.new_tensor(ENDS), 0).float().cpu()


def by_scipy(samples: Tensor) -> Tensor:
    """At most 2^20 values at once; its statistic is NumPy's mean."""
    found = scipy.stats.bootstrap(
        (samples.double().cpu().numpy(),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 2**20 // samples.numel()),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return torch.from_numpy(np.stack([found.confidence_interval.low, found.confidence_interval.high])).float()


def difference(one: Tensor, other: Tensor) -> float:
    return float(((one - other).abs() / (one[1] - one[0])).max())


main(__name__, rows, __file__)
