"""Shapley interactions of games over M modalities, as one product of v with weights.

The last axis of `values` holds v(S), indexed by the bit mask of S with modality 0 as the lowest bit.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import torch
from jaxtyping import Float
from torch import Tensor


def interactions(
    values: Float[Tensor, "*batch coalitions"], of: tuple[int, ...]
) -> Float[Tensor, "*batch wanted"]:
    """Shapley interaction index I_T (Grabisch and Roubens, 1999) of the coalitions T in `of` (bit masks).

    I_{i} is the Shapley value of i, and I_∅ the Shapley-weighted mean Σ_S |S|! (M − |S|)! / (M + 1)! v(S), as in
    shapiq. Result in the dtype and unit of `values`; sums run in float64 and gradients flow through. A common offset
    cancels exactly in all but I_∅. A game that holds NaN or infinity has no finite I_T, and does not touch others.

    Raises ValueError for a last axis that is not 2^M with M ≥ 1, a dtype that is not floating, and for an `of` that is
    empty or has more than bit masks below 2^M.
    """
    size = _check(values)
    if not (of and all(type(mask) is int and 0 <= mask < 2**size for mask in of)):
        raise ValueError(f"of is {of!r}; allowed are bit masks from 0 to {2**size - 1}, one at least.")
    weights, rest = (tensor.to(values.device) for tensor in _weights(size, of))
    exact = values.double()
    return (torch.addcmul(exact, exact[..., :1], rest, value=-1) @ weights).to(values.dtype)


def modalities(name: str, coalitions: int) -> int:
    """M of 2^M coalitions. Raises ValueError, with `name`, for a number that is not 2^M with M ≥ 1."""
    if coalitions < 2 or coalitions & (coalitions - 1):
        raise ValueError(f"{name} has {coalitions} coalitions; allowed is 2**M with M of at least 1.")
    return coalitions.bit_length() - 1


@lru_cache(maxsize=16)
def _weights(
    size: int, wanted: tuple[int, ...]
) -> tuple[Float[Tensor, "coalitions wanted"], Float[Tensor, " coalitions"]]:
    """What v(S) − v(∅) counts in I_T, with v(∅) itself in the first row, and which rows are differences (1) or not (0).

    With r of the modalities outside T in S, it counts (−1)^{|T \\ S|} r! (M − |T| − r)! / (M − |T| + 1)!
    """
    coalitions, of = torch.arange(2**size)[:, None], torch.tensor(wanted)
    members = sum(coalitions[:, 0] >> i & 1 for i in range(size))
    share = [[1 / ((n + 1) * comb(n, r)) if r <= n else 0.0 for r in range(size + 1)] for n in range(size + 1)]
    outside = members[coalitions & ~of]
    weights = torch.tensor(share, dtype=torch.float64)[size - members[of], outside]
    weights[members[of & ~coalitions] % 2 == 1] *= -1
    weights[0] = (of == 0).double()
    return weights, (coalitions[:, 0] > 0).double()


def _check(values: Tensor) -> int:
    if not values.is_floating_point():
        raise ValueError(f"values is {values.dtype}; allowed are tensors of a floating dtype.")
    if values.ndim == 0:
        raise ValueError("values has shape []; allowed is [..., 2**M].")
    return modalities("values", values.shape[-1])
