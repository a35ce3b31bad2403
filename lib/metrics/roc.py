"""How well a score tells poisoned samples from clean ones."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor


def auroc(
    score: Float[Tensor, " sample"], poisoned: Bool[Tensor, " sample"], seed: int = 0, resamples: int = 1000
) -> dict[str, float | int]:
    """Area under the ROC curve with its 95 % bootstrap interval over samples, and the average precision.

    Resamples without a poisoned or without a clean sample are left out. Where there is one poisoned or one clean sample
    there is no interval: its ends are NaN.
    Raises ValueError when all samples are poisoned or none is, and for scores that are not finite.
    """
    values, truth, n = score.double().numpy(), poisoned.numpy(), len(score)
    if not np.isfinite(values).all():
        raise ValueError("score holds NaN or infinity; allowed are finite numbers.")
    if truth.all() or not truth.any():
        raise ValueError(f"poisoned holds {truth.sum()} of {n}: there must be poisoned and clean samples.")
    areas = _resampled_areas(values, truth, seed, resamples)
    alone = min(truth.sum(), n - truth.sum()) == 1
    low, high = (np.nan, np.nan) if alone else np.quantile(areas, [0.025, 0.975])
    measures = {"auroc": roc_auc_score(truth, values), "low": low, "high": high}
    measures["average_precision"] = average_precision_score(truth, values)
    return {name: float(value) for name, value in measures.items()} | {"n": n, "n_poisoned": int(truth.sum())}


def _resampled_areas(values: np.ndarray, truth: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Share of (poisoned, clean) pairs in order, ties half, in every bootstrap resample that holds both kinds."""
    order = np.argsort(values, kind="stable")
    levels = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # where a new score begins
    count = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    kinds = (np.where(truth == kind, count, 0)[:, order] for kind in (True, False))
    poisoned, clean = (np.add.reduceat(kind, levels, axis=1) for kind in kinds)
    pairs = poisoned.sum(1) * clean.sum(1)
    in_order = (poisoned * (clean.cumsum(1) - clean / 2)).sum(1)
    return in_order[pairs > 0] / pairs[pairs > 0]
