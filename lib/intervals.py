"""95 % intervals, one function a unit: seeds for what was trained, clusters (identities, pictures) for test samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from lib.attribution import wilson_of_share

Number = dict[str, float | int | str]
OVER_SEEDS, ONE_SEED, OVER_CLUSTERS = "t over seeds", "none: one seed", "t over clusters"


def over_seeds(values: Sequence[float], trials: int | None = None) -> Number:
    """Mean of one value a seed with its t-interval over the seeds (Student 1908), n the number of seeds.

    Of shares, `trials` is the number of samples a seed: their interval is within [0, 1] and at least Wilson's of all
    samples, as three seeds that all show 1.0 are no certainty. A single seed has no interval: low and high are NaN.
    Raises ValueError for no value and for what is not finite, and with `trials` for what is no share.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < 1 or not np.isfinite(found).all():
        raise ValueError(f"values is {list(values)!r}; allowed is a finite number for each of one seed or more.")
    if trials is not None and not (trials >= 1 and found.min() >= 0 and found.max() <= 1):
        raise ValueError(f"values is {list(values)!r} of {trials} trials each; allowed are shares of one at least.")
    mean = float(found.mean())
    if len(found) == 1:
        return {"value": mean, "low": float("nan"), "high": float("nan"), "n": 1, "interval": ONE_SEED}
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    low, high = mean - half, mean + half
    if trials is not None:
        pooled = wilson_of_share(mean, len(found) * trials)
        low, high = max(0.0, min(low, pooled[0])), min(1.0, max(high, pooled[1]))
    return {"value": mean, "low": low, "high": high, "n": len(found), "interval": OVER_SEEDS}


def over_clusters(
    samples: Float[Tensor, " n"] | Bool[Tensor, " n"], clusters: Sequence[Hashable] | None = None
) -> Number:
    """Mean of test samples and its interval, samples of one cluster taken as dependent; n counts samples.

    `clusters` names each sample's (by default each is its own). For shares (booleans) it is Wilson's with n divided by
    the design effect, for other values a t-interval with the cluster-robust standard error
    (Liang and Zeger 1986) and one degree of freedom a cluster less one.
    Raises ValueError for fewer than two clusters, clusters that are not one a sample, and what is not finite.
    """
    share = samples.dtype == torch.bool
    found = samples.double().numpy()
    names = range(len(found)) if clusters is None else clusters
    if len(names) != len(found):
        raise ValueError(f"clusters has {len(names)} names for {len(found)} samples; allowed is one a sample.")
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    count = len(number)
    if count < 2 or not np.isfinite(found).all():
        raise ValueError(f"samples are {len(found)} of {count} clusters; allowed are finite ones of two at least.")
    n, mean = len(found), float(found.mean())
    sums = np.bincount([number[name] for name in names], weights=found - mean, minlength=count)
    variance = float((sums**2).sum()) / n**2
    if share:
        binomial = mean * (1 - mean) / n
        effective = n * min(1.0, binomial / variance) if variance > 0 else float(count)
        low, high = wilson_of_share(mean, effective)
        return {"value": mean, "low": low, "high": high, "n": n, "interval": "Wilson over clusters"}
    half = float(stats.t.ppf(0.975, count - 1) * (variance * count / (count - 1)) ** 0.5)
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n, "interval": OVER_CLUSTERS}
