"""Which modality carries a backdoor: coalition values, Shapley values, interactions, intervals.

A game over M modalities is a tensor whose last axis holds v(S) for all 2^M coalitions S, indexed by the
bit mask of S with modality 0 as the lowest bit: for an image (0) and a text (1) the order is ∅, {I}, {T},
{I,T}.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lib.metrics.checks import check_finite, is_integer, shape_of
from lib.metrics.coalitions import interactions, modalities


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
        check_finite(name, tensor)
    if embeddings.ndim != 3:
        raise ValueError(f"embeddings has shape {shape_of(embeddings)}; allowed is [batch, coalitions, dim].")
    modalities("embeddings", embeddings.shape[1])
    for name, tensor in (("targets", targets), ("clean", clean)):
        if tensor.shape != embeddings[:, 0].shape:
            raise ValueError(
                f"{name} has shape {shape_of(tensor)}; allowed is [batch, dim] = {shape_of(embeddings[:, 0])}."
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
        if not is_integer(index) or not 0 <= index < count:
            raise ValueError(f"{name} is {index!r}; allowed are the integers 0 to {count - 1}.")
    if i == j:
        raise ValueError(f"i and j are both {i}; allowed are two different modalities.")
    return interactions(values, (1 << i | 1 << j,))[..., 0]


def attribution(values: Float[Tensor, "*batch 4"]) -> dict[str, Float[Tensor, "*batch"]]:
    """TMA and CTI of image (0) and text (1): phi_image, phi_text and cti, by `shapley` and `interaction`."""
    image, text = shapley(values).unbind(-1)
    return {"phi_image": image, "phi_text": text, "cti": interaction(values)}


def _check_game(values: Tensor) -> int:
    check_finite("values", values)
    if values.ndim == 0:
        raise ValueError("values has shape []; allowed is [..., 2**M].")
    return modalities("values", values.shape[-1])
