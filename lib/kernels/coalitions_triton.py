"""Möbius transform and Shapley interactions in one pass over memory; see `coalitions`."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1024  # values that a program holds


def butterfly(games: Tensor, nodes: tuple[tuple[float, float], ...], transposed: bool) -> Tensor:
    """Σ_q w_q A_q ⊗ … ⊗ A_q on every row of `games` [game, 2^M], A_q = [[1 − t_q, t_q], [−1, 1]], in float64.

    `nodes` are (w_q, t_q), none the Möbius transform, as (1, 0); `transposed` takes A_q's transposes.
    """
    games = games.contiguous()
    count, size = games.shape
    out = torch.empty(games.shape, dtype=torch.float64, device=games.device)
    corner = [(t, -1.0) if not transposed else (-1.0, t) for _, t in nodes or ((1.0, 0.0),)]
    table = [(w, 1 - t, *both, 1.0) for (w, t), both in zip(nodes or ((1.0, 0.0),), corner, strict=True)]
    rows = max(1, ELEMENTS // size)
    if count:
        _butterfly[(triton.cdiv(count, rows),)](
            games,
            out,
            torch.tensor(table, dtype=torch.float64, device=games.device),
            count,
            len(table),
            ROWS=rows,
            SIZE=size,
            MODALITIES=size.bit_length() - 1,
        )
    return out


@triton.jit
@no_type_check
def _butterfly(
    games_ptr,  # [game, SIZE], any floating dtype
    out_ptr,  # [game, SIZE] float64
    table_ptr,  # [node, 5] float64: weight, and A = [[a, b], [c, d]] row by row
    count,
    nodes,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    MODALITIES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = row * SIZE + tl.arange(0, SIZE)
    games = tl.load(games_ptr + place, mask=row < count, other=0.0).to(tl.float64)
    total = tl.zeros((ROWS, SIZE), tl.float64)
    for node in range(nodes):
        weight = tl.load(table_ptr + node * 5)
        a, b = tl.load(table_ptr + node * 5 + 1), tl.load(table_ptr + node * 5 + 2)
        c, d = tl.load(table_ptr + node * 5 + 3), tl.load(table_ptr + node * 5 + 4)
        state = games
        for _ in tl.static_range(MODALITIES):  # the lowest bit is transformed and becomes the highest
            low, high = tl.split(tl.reshape(state, (ROWS, SIZE // 2, 2)))
            both = tl.join(a * low + b * high, c * low + d * high)
            state = tl.reshape(tl.permute(both, (0, 2, 1)), (ROWS, SIZE))
        total += weight * state
    tl.store(out_ptr + place, total, mask=row < count)
