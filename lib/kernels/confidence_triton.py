"""Kernels of `confidence`: what a tile of the vocabulary holds, and the merging of tiles.

Of a tile of logits x with maximum m: m, its lowest index, w₂ = exp(second − m), z = Σ exp(x − m) and
s = Σ (x − m) exp(x − m). Tiles merge as in an online softmax (arXiv 1805.02867); from the whole row's five follow the
scores 1/z, (1 − w₂)/z and s/z − log z. Each logit is read once, by one program, and all is counted in float32.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl

TILE = 8192  # logits of a program: a row of a small vocabulary is one tile, and then nothing is merged


@triton.jit
@no_type_check
def _statistics(x, column, SCORE: tl.constexpr):
    """(m, token, w₂, z, s) [row] of x [row, column]; NaN or +inf make z NaN, nothing but −inf makes it 0."""
    known = tl.where(x == x, x, float("-inf"))
    best, place = tl.max(known, 1, return_indices=True, return_indices_tie_break_left=True)
    token = tl.min(column, 0) + place
    below = x - tl.where(best == float("-inf"), 0.0, best)[:, None]
    weight = tl.exp(below)
    total = tl.sum(weight, 1)
    second, weighted = total, total  # where the score needs neither
    if SCORE == "margin":
        second = tl.max(tl.where(column[None, :] == token[:, None], 0.0, weight), 1)
    if SCORE == "entropy":
        weighted = tl.sum(tl.where(weight > 0, weight * below, 0.0), 1)
    return best, token, second, total, weighted


@triton.jit
@no_type_check
def _sureness(best, second, total, weighted, given, SCORE: tl.constexpr):
    if SCORE == "probability":
        sureness = 1 / total
    elif SCORE == "margin":
        sureness = (1 - second) / total
    elif SCORE == "entropy":
        sureness = weighted / total - tl.log(total)
    else:
        sureness = tl.exp(given - best) / total
    return tl.where(total > 0, sureness, float("nan"))


@triton.jit
@no_type_check
def _forbid(x, column, vocab, forbidden):
    """−inf beyond the vocabulary and at the forbidden index, where NaN stays."""
    x = tl.where((column[None, :] == forbidden) & (x == x), float("-inf"), x)
    return tl.where(column[None, :] < vocab, x, float("-inf"))


@triton.jit
@no_type_check
def _logits_kernel(
    logits,  # [row, vocab], any strides
    given,  # float32 [row]
    tokens,  # int64 [row, tiles]
    sureness,  # float32 [row], written where there is one tile
    partial,  # float32 [4, row, tiles], written where there are more
    rows,
    tiles,
    vocab,
    row_stride,
    column_stride,
    forbidden,
    SCORE: tl.constexpr,
    ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    tile = tl.program_id(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    offset = row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
    x = tl.load(logits + offset, column[None, :] < vocab, other=float("-inf")).to(tl.float32)
    best, token, second, total, weighted = _statistics(_forbid(x, column, vocab, forbidden), column, SCORE)
    if ONE:
        wanted = tl.load(given + row) if SCORE == "given" else best
        tl.store(tokens + row, token)
        tl.store(sureness + row, _sureness(best, second, total, weighted, wanted, SCORE))
    else:
        place = row * tiles + tile
        size = rows * tiles
        tl.store(tokens + place, token)
        tl.store(partial + place, best)
        tl.store(partial + size + place, second)
        tl.store(partial + 2 * size + place, total)
        tl.store(partial + 3 * size + place, weighted)


@triton.jit
@no_type_check
def _merge_kernel(
    tokens,  # int64 [row, tiles]
    partial,  # float32 [4, row, tiles]
    given,  # float32 [row]
    token,  # int64 [row]
    sureness,  # float32 [row]
    rows,
    tiles,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK)
    inside = tile < tiles
    place = row * tiles + tile
    size = rows * tiles
    bests = tl.load(partial + place, inside, other=float("-inf"))
    seconds = tl.load(partial + size + place, inside, other=0.0)
    totals = tl.load(partial + 2 * size + place, inside, other=0.0)
    weighteds = tl.load(partial + 3 * size + place, inside, other=0.0)

    best, winner = tl.max(bests, 0, return_indices=True, return_indices_tie_break_left=True)
    shift = bests - best
    scale = tl.exp(shift)
    total = tl.sum(totals * scale, 0)
    second = tl.max(tl.where(tile == winner, seconds, scale), 0)
    weighted = tl.sum(tl.where(scale > 0, scale * (weighteds + shift * totals), 0.0), 0)
    wanted = tl.load(given + row) if SCORE == "given" else best
    tl.store(token + row, tl.load(tokens + row * tiles + winner))
    tl.store(sureness + row, _sureness(best, second, total, weighted, wanted, SCORE))


def scan(
    flat: torch.Tensor, score: str, forbidden: int | None = None, given: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token int64 and sureness float32 [row] of logits `flat` [row, vocab].

    `given`, tokens [row], is needed by the score "given" alone: their probability is the sureness.
    """
    rows, vocab = flat.shape
    tiles = triton.cdiv(vocab, TILE)
    tokens = torch.empty(rows, tiles, dtype=torch.int64, device=flat.device)
    partial = torch.empty(4, rows, tiles, dtype=torch.float32, device=flat.device)
    sureness = torch.empty(rows, dtype=torch.float32, device=flat.device)
    if not rows:
        return tokens[:, 0], sureness
    if given is not None:
        wanted = flat[torch.arange(rows, device=flat.device), given].float()
        given = wanted if forbidden is None else wanted.masked_fill(given == forbidden, -torch.inf)
    _logits_kernel[(rows, tiles)](
        *(flat, given, tokens, sureness, partial, rows, tiles, vocab, *flat.stride()),
        forbidden=-1 if forbidden is None else forbidden,
        SCORE=score,
        ONE=tiles == 1,
        BLOCK=min(TILE, triton.next_power_of_2(vocab)),
        num_warps=8 if vocab > 2048 else 4,
    )
    if tiles == 1:
        return tokens[:, 0], sureness
    token, block = torch.empty_like(tokens[:, 0]), triton.next_power_of_2(tiles)
    _merge_kernel[(rows,)](tokens, partial, given, token, sureness, rows, tiles, SCORE=score, BLOCK=block)
    return token, sureness
