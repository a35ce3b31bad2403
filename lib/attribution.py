"""Which modality carries a backdoor: coalition values, Shapley values, interactions, intervals.

A game over M modalities is a tensor whose last axis holds v(S) for all 2^M coalitions S, indexed by the
bit mask of S with modality 0 as the lowest bit: for an image (0) and a text (1) the order is ∅, {I}, {T},
{I,T}.
"""

import math
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels import on_gpu
from lib.kernels.bootstrap import CHUNK, resampled_means
from lib.kernels.coalitions import interactions, modalities


def coalition_values(
    embeddings: Float[Tensor, "batch coalitions dim"],
    targets: Float[Tensor, "batch dim"],
    clean: Float[Tensor, "batch dim"],
) -> Float[Tensor, "batch coalitions"]:
    """v(S) = cos(z_S, z_tr) − cos(z_S, z_cl) of every sample and coalition, in [−2, 2] (arXiv 2603.06508).

    `embeddings` are those of the outputs under each coalition (z_S), `targets` of the attacker's targets
    (z_tr), `clean` of the clean references (z_cl). Computed in float64, returned in the embeddings' dtype.

    Raises ValueError for shapes that do not fit together, a coalition axis that is not 2^M with M ≥ 1, a
    dtype that is not floating, and vectors that are not finite or are zero (their cosine is undefined).
    """
    named = {"embeddings": embeddings, "targets": targets, "clean": clean}
    for name, tensor in named.items():
        _check_finite(name, tensor)
    if embeddings.ndim != 3:
        raise ValueError(f"embeddings has shape {_shape(embeddings)}; allowed is [batch, coalitions, dim].")
    modalities("embeddings", embeddings.shape[1])
    for name, tensor in (("targets", targets), ("clean", clean)):
        if tensor.shape != embeddings[:, 0].shape:
            raise ValueError(
                f"{name} has shape {_shape(tensor)}; allowed is [batch, dim] = {_shape(embeddings[:, 0])}."
            )
    directions = {}
    for name, tensor in named.items():
        norms = tensor.double().norm(dim=-1, keepdim=True)
        if (norms == 0).any():
            raise ValueError(f"{name} holds a zero vector; allowed are vectors of non-zero length.")
        directions[name] = tensor.double() / norms
    difference = directions["targets"] - directions["clean"]
    return (directions["embeddings"] * difference[:, None]).sum(-1).to(embeddings.dtype)


def shapley(values: Float[Tensor, "*batch coalitions"]) -> Float[Tensor, "*batch modality"]:
    """Shapley value of each modality; for two modalities this is TMA (arXiv 2603.06508).

        φ_i = Σ_{S ∌ i} |S|! (M − 1 − |S|)! / M! · (v(S ∪ i) − v(S)),        Σ_i φ_i = v(all) − v(∅)

    `values` is [..., 2^M], coalitions as bit masks; the result is [..., M], in the same dtype and unit. Sums
    run in float64, and gradients flow through.

    Raises ValueError for a last axis that is not 2^M with M ≥ 1, a dtype that is not floating, and values
    that are not finite.
    """
    return interactions(values, tuple(1 << i for i in range(_check_game(values))))


def interaction(
    values: Float[Tensor, "*batch coalitions"], i: int = 0, j: int = 1
) -> Float[Tensor, "*batch"]:
    """Shapley interaction index of modalities i and j (Grabisch and Roubens, 1999); for M = 2 it is CTI.

        I_ij = Σ_{S ∌ i,j} |S|! (M − 2 − |S|)! / (M − 1)! · (v(S ∪ ij) − v(S ∪ i) − v(S ∪ j) + v(S))

    `values` is [..., 2^M], coalitions as bit masks; the result is [...], in the same dtype and unit.
    Positive: the two help one another; negative: they are redundant or get in each other's way.

    Raises ValueError for what `shapley` refuses, for i = j, and for i or j outside 0 … M − 1.
    """
    count = _check_game(values)
    for name, index in (("i", i), ("j", j)):
        if not _is_integer(index) or not 0 <= index < count:
            raise ValueError(f"{name} is {index!r}; allowed are the integers 0 to {count - 1}.")
    if i == j:
        raise ValueError(f"i and j are both {i}; allowed are two different modalities.")
    return interactions(values, (1 << i | 1 << j,))[..., 0]


def attribution(values: Float[Tensor, "*batch 4"]) -> dict[str, Float[Tensor, "*batch"]]:
    """TMA and CTI of image (0) and text (1): phi_image, phi_text and cti, by `shapley` and `interaction`."""
    image, text = shapley(values).unbind(-1)
    return {"phi_image": image, "phi_text": text, "cti": interaction(values)}


@torch.no_grad()
def bootstrap_mean(
    samples: Float[Tensor, "n *rest"], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Mean over axis 0 and its percentile bootstrap interval: (mean, low, high), each of shape [*rest].

    Whole rows of `samples` [n, *rest] are drawn with replacement, the same rows for every column, `resamples`
    times (Efron, 1979); the limits are the (1 ∓ confidence)/2 quantiles, linearly interpolated. The same seed
    gives the same interval on the same kind of device. Computed in float64, returned in the dtype and on the
    device of `samples`.

    Raises ValueError for no samples, a dtype that is not floating, samples that are not finite, a confidence
    outside (0, 1), fewer than one resample, and a seed outside 0 … 2^63 − 1.
    """
    _check_finite("samples", samples)
    _check_confidence(confidence)
    if samples.ndim == 0 or len(samples) == 0:
        raise ValueError(f"samples has shape {_shape(samples)}; allowed is [n, ...] with n at least 1.")
    n = len(samples)
    kept = samples if on_gpu(samples) else samples.cpu()
    flat = kept.reshape(n, math.prod(samples.shape[1:])).double()
    offset = flat[0].cpu()
    flat = flat - flat[0]  # so that constant samples give an interval of exactly zero width
    means = resampled_means(flat, resamples, seed, CHUNK)
    tail = (1 - confidence) / 2
    low, high = torch.from_numpy(np.quantile(means.numpy(), [tail, 1 - tail], axis=0))
    return tuple((m + offset).reshape(samples.shape[1:]).to(samples) for m in (flat.mean(0).cpu(), low, high))


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (1927) of a rate: (low, high) within [0, 1], for `successes` out of `n` trials.

    Raises ValueError for n below 1, successes outside 0 … n, and a confidence outside (0, 1).
    """
    if not _is_integer(n) or n < 1:
        raise ValueError(f"n is {n!r}; allowed are integers from 1.")
    if not _is_integer(successes) or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes!r}; allowed are the integers 0 to {n}.")
    _check_confidence(confidence)
    return wilson_of_share(successes / n, n, confidence)


def wilson_of_share(share: float, n: float | int, confidence: float = 0.95) -> tuple[float, float]:
    """As `wilson`, of a share of an effective number of trials, which need not be whole. Nothing is checked."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half)


def _check_game(values: Tensor) -> int:
    _check_finite("values", values)
    if values.ndim == 0:
        raise ValueError("values has shape []; allowed is [..., 2**M].")
    return modalities("values", values.shape[-1])


def _check_finite(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} is {kind}; allowed are tensors of a floating dtype.")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity; allowed are finite numbers.")


def _check_confidence(confidence: float) -> None:
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}; allowed is between 0 and 1, both excluded.")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
