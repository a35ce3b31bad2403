"""Möbius transform and Shapley interactions of games over M modalities.

The last axis of `values` holds v(S), indexed by the bit mask of S with modality 0 as the lowest bit.

    m(S) = Σ_{T ⊆ S} (−1)^{|S| − |T|} v(T)              Harsanyi's dividends
    I_T  = Σ_{S ⊇ T} m(S) / (|S| − |T| + 1)              Grabisch and Roubens, 1999

m takes M steps over the 2^M coalitions, in place. 1/(k + 1) is the integral of t^k over [0, 1], so I is the mean over
t of M steps [[1, t], [0, 1]] on m (after Owen's multilinear extension, 1972), and ⌊M/2⌋ + 1 Gauss–Legendre nodes t give
it exactly: so it is made on a GPU and for many modalities. On the CPU one product of v with all weights is faster. A
product would make m faster too, up to M = 7, but leave rounding errors where a modality changes nothing.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels import on_gpu

BLOCK = 2**15  # values transformed at once on the CPU, so that all steps find them in its cache
MATRIX = 10  # modalities up to which the weights of all interactions are held, in 8 × 4^M bytes
KERNEL = 10  # modalities up to which a program of the kernel holds a game
Nodes = tuple[tuple[float, float], ...]  # (weight, t); none: the Möbius transform alone


def mobius(values: Float[Tensor, "*batch coalitions"]) -> Float[Tensor, "*batch coalitions"]:
    """m(S), what coalition S gives beyond its parts: [..., 2^M], in the dtype and unit of `values`.

    Sums run in float64 and gradients flow through. An S with a modality that changes nothing gets exactly 0. NaN or
    infinity at T leaves no m(S) of the same game with S ⊇ T finite, and does not touch other games.

    Raises ValueError for a last axis that is not 2^M with M ≥ 1 and a dtype that is not floating.
    """
    _check(values)
    return _butterfly(values, ()).to(values.dtype)


def interactions(
    values: Float[Tensor, "*batch coalitions"], of: tuple[int, ...] | None = None
) -> Float[Tensor, "*batch wanted"]:
    """Shapley interaction index I_T of the coalitions T in `of` (bit masks), or of all 2^M at index T.

    I_{i} is the Shapley value of i, and I_∅ the Shapley-weighted mean Σ_S |S|! (M − |S|)! / (M + 1)! v(S), as in
    shapiq. Result in the dtype and unit of `values`; sums run in float64 and gradients flow through. A common offset
    cancels exactly in all but I_∅. A game that holds NaN or infinity has no finite I_T, and does not touch others.

    Raises ValueError for what `mobius` refuses, and for an `of` that is empty or has more than bit masks below 2^M.
    """
    size = _check(values)
    if of is None and (size > MATRIX or on_gpu(values)):
        return _butterfly(values, _nodes(size)).to(values.dtype)
    if of is not None and not (of and all(type(mask) is int and 0 <= mask < 2**size for mask in of)):
        raise ValueError(f"of is {of!r}; allowed are bit masks from 0 to {2**size - 1}, one at least.")
    weights, rest = (tensor.to(values.device) for tensor in _weights(size, of))
    exact = values.double()
    return (torch.addcmul(exact, exact[..., :1], rest, value=-1) @ weights).to(values.dtype)


def modalities(name: str, coalitions: int) -> int:
    """M of 2^M coalitions. Raises ValueError, with `name`, for a number that is not 2^M with M ≥ 1."""
    if coalitions < 2 or coalitions & (coalitions - 1):
        raise ValueError(f"{name} has {coalitions} coalitions; allowed is 2**M with M of at least 1.")
    return coalitions.bit_length() - 1


class _Butterfly(torch.autograd.Function):
    """Σ_q w_q A_q ⊗ … ⊗ A_q on every game, A_q = [[1, t_q], [0, 1]] [[1, 0], [−1, 1]]; its gradient: the transpose."""

    @staticmethod
    def forward(ctx, games: Float[Tensor, "game coalitions"], nodes: Nodes, transposed: bool) -> Tensor:
        ctx.nodes, ctx.transposed = nodes, transposed
        if on_gpu(games) and games.shape[1] <= 2**KERNEL:
            from lib.kernels.coalitions_triton import butterfly

            return butterfly(games, nodes, transposed)
        out = games.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
        for block in out.split(max(1, BLOCK // games.shape[1])):
            _transform(block, nodes, transposed)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Butterfly.apply(gradient, ctx.nodes, not ctx.transposed), None, None


def _butterfly(values: Tensor, nodes: Nodes) -> Tensor:
    return _Butterfly.apply(values.reshape(-1, values.shape[-1]), nodes, False).view(values.shape)


def _transform(block: Tensor, nodes: Nodes, transposed: bool) -> None:
    if not transposed:
        _steps(block, -1.0, upwards=True)
    if nodes:
        block.copy_(sum(weight * _steps(block.clone(), t, upwards=transposed) for weight, t in nodes))
    if transposed:
        _steps(block, -1.0, upwards=False)


def _steps(games: Tensor, scale: float, upwards: bool) -> Tensor:
    """For every modality, add `scale` times the values without it to those with it; downwards the other way."""
    for i in range(games.shape[1].bit_length() - 1):
        low, high = games.view(-1, 2, 1 << i).unbind(1)
        source, target = (low, high) if upwards else (high, low)
        target.add_(source, alpha=scale)
    return games


@lru_cache
def _nodes(size: int) -> Nodes:
    t, weight = np.polynomial.legendre.leggauss(size // 2 + 1)  # exact for polynomials of degree `size`
    return tuple(zip((weight / 2).tolist(), ((t + 1) / 2).tolist(), strict=True))


@lru_cache(maxsize=16)
def _weights(
    size: int, wanted: tuple[int, ...] | None
) -> tuple[Float[Tensor, "coalitions wanted"], Float[Tensor, " coalitions"]]:
    """What v(S) − v(∅) counts in I_T, with v(∅) itself in the first row, and which rows are differences (1) or not (0).

    With r of the modalities outside T in S, it counts (−1)^{|T \\ S|} r! (M − |T| − r)! / (M − |T| + 1)!
    """
    coalitions = torch.arange(2**size)[:, None]
    of = coalitions[:, 0] if wanted is None else torch.tensor(wanted)
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
