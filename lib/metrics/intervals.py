"""95 % intervals, one function a unit: seeds for what was trained, clusters (identities, pictures) for test samples.

Of a single unit there is no interval whatever the function: low and high are NaN, and `interval` says "none: one …".
A rate (`wilson`, `rate`) has one, as a single trial of a known law does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from lib.kernels import on_gpu
from lib.kernels.bootstrap import CHUNK, resampled_means
from lib.metrics.checks import check_finite, is_integer, shape_of


@torch.no_grad()
def bootstrap_mean(
    samples: Float[Tensor, "n *rest"],  # noqa: UP037, a shape and no product
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Mean over axis 0 and its percentile bootstrap interval: (mean, low, high), each of shape [*rest].

    Whole rows of `samples` [n, *rest] are drawn with replacement, the same rows for every column, `resamples`
    times (Efron, 1979); the limits are the (1 ∓ confidence)/2 quantiles, linearly interpolated. The same seed
    gives the same interval on the same kind of device. Of one sample the limits are NaN. Computed in float64, returned
    in the dtype and on the device of `samples`.

    Raises ValueError for no samples, a dtype that is not floating, samples that are not finite, a confidence
    outside (0, 1), fewer than one resample, and a seed outside 0 … 2^63 − 1.
    """
    check_finite("samples", samples)
    _check_confidence(confidence)
    if samples.ndim == 0 or len(samples) == 0:
        raise ValueError(f"samples has shape {shape_of(samples)}; allowed is [n, ...] with n at least 1.")
    n = len(samples)
    kept = samples if on_gpu(samples) else samples.cpu()
    flat = kept.reshape(n, math.prod(samples.shape[1:])).double()
    offset = flat[0].cpu()
    flat = flat - flat[0]  # so that constant samples give an interval of exactly zero width
    means = resampled_means(flat, resamples, seed, CHUNK)
    tail = (1 - confidence) / 2
    low, high = torch.from_numpy(np.quantile(means.numpy(), [tail, 1 - tail], axis=0))
    if n == 1:
        low = high = torch.full_like(low, torch.nan)
    return tuple((m + offset).reshape(samples.shape[1:]).to(samples) for m in (flat.mean(0).cpu(), low, high))


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (1927) of a rate: (low, high) within [0, 1], for `successes` out of `n` trials.

    Raises ValueError for n below 1, successes outside 0 … n, and a confidence outside (0, 1).
    """
    if not is_integer(n) or n < 1:
        raise ValueError(f"n is {n!r}; allowed are integers from 1.")
    if not is_integer(successes) or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes!r}; allowed are the integers 0 to {n}.")
    _check_confidence(confidence)
    return wilson_of_share(successes / n, n, confidence)


def wilson_of_share(share: float, n: float | int, confidence: float = 0.95) -> tuple[float, float]:
    """As `wilson`, of a share of an effective number of trials, which need not be whole. Nothing is checked."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half)


def _check_confidence(confidence: float) -> None:
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}; allowed is between 0 and 1, both excluded.")


def rate(successes: Bool[Tensor, " n"] | Float[Tensor, " n"]) -> dict[str, float | int | str]:
    """A share with its 95 % Wilson interval: value, low, high, n, interval."""
    count, n = int(successes.sum()), len(successes)
    low, high = wilson(count, n)
    return {"value": count / n, "low": low, "high": high, "n": n, "interval": "Wilson"}


def mean_with_interval(samples: Float[Tensor, " n"], seed: int) -> dict[str, float | int | str]:
    """A mean with its 95 % bootstrap interval: value, low, high, n, interval."""
    mean, low, high = bootstrap_mean(samples, seed=seed)
    value, low, high = float(mean), float(low), float(high)
    if len(samples) == 1:
        return without_interval(value, 1, ONE_SAMPLE)
    kind = {"n": len(samples), "interval": "bootstrap"}
    return {"value": value, "low": min(low, value), "high": max(high, value)} | kind


Number = dict[str, float | int | str]


OVER_SEEDS, OVER_CLUSTERS = "t over seeds", "t over clusters"
ONE_SEED, ONE_CLUSTER, ONE_SAMPLE = "none: one seed", "none: one cluster", "none: one sample"


def without_interval(value: float, n: int, why: str) -> Number:
    """A number whose low and high are NaN, and `why`."""
    return {"value": value, "low": math.nan, "high": math.nan, "n": n, "interval": why}


def over_seeds(values: Sequence[float], trials: int | None = None) -> Number:
    """Mean of one value a seed with its t-interval over the seeds (Student 1908), n the number of seeds.

    Of shares, `trials` is the number of samples a seed: their interval is within [0, 1] and at least Wilson's of all
    samples, as three seeds that all show 1.0 are no certainty. A single seed has no interval: low and high are NaN.
    Raises ValueError for no value and for what is not finite, and with `trials` for what is no share.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 1 or not np.isfinite(numbers).all():
        raise ValueError(f"values is {list(values)!r}; allowed is a finite number for each of one seed or more.")
    if trials is not None and not (trials >= 1 and numbers.min() >= 0 and numbers.max() <= 1):
        raise ValueError(f"values is {list(values)!r} of {trials} trials each; allowed are shares of one at least.")
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return without_interval(mean, 1, ONE_SEED)
    half = float(stats.t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / len(numbers) ** 0.5)
    low, high = mean - half, mean + half
    if trials is not None:
        pooled = wilson_of_share(mean, len(numbers) * trials)
        low, high = max(0.0, min(low, pooled[0])), min(1.0, max(high, pooled[1]))
    return {"value": mean, "low": low, "high": high, "n": len(numbers), "interval": OVER_SEEDS}


def over_clusters(
    samples: Float[Tensor, " n"] | Bool[Tensor, " n"], clusters: Sequence[Hashable] | None = None
) -> Number:
    """Mean of test samples and its interval, samples of one cluster taken as dependent; n counts samples.

    `clusters` names each sample's (by default each is its own). For shares (booleans) it is Wilson's with n divided by
    the design effect, for other values a t-interval with the cluster-robust standard error
    (Liang and Zeger 1986) and one degree of freedom a cluster less one. A single cluster has no interval: low and high
    are NaN. Raises ValueError for no sample, clusters that are not one a sample, and what is not finite.
    """
    share = samples.dtype == torch.bool
    numbers = samples.double().numpy()
    names = range(len(numbers)) if clusters is None else clusters
    if len(names) != len(numbers):
        raise ValueError(f"clusters has {len(names)} names for {len(numbers)} samples; allowed is one a sample.")
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    count = len(number)
    if not count or not np.isfinite(numbers).all():
        raise ValueError(f"samples are {len(numbers)} of {count} clusters; allowed are finite ones of one at least.")
    n, mean = len(numbers), float(numbers.mean())
    if count == 1:
        return without_interval(mean, n, ONE_CLUSTER)
    sums = np.bincount([number[name] for name in names], weights=numbers - mean, minlength=count)
    variance = float((sums**2).sum()) / n**2
    if share:
        binomial = mean * (1 - mean) / n
        effective = n * min(1.0, binomial / variance) if variance > 0 else float(count)
        low, high = wilson_of_share(mean, effective)
        return {"value": mean, "low": low, "high": high, "n": n, "interval": "Wilson over clusters"}
    half = float(stats.t.ppf(0.975, count - 1) * (variance * count / (count - 1)) ** 0.5)
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n, "interval": OVER_CLUSTERS}
