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
HEAD_ROWS, HEAD_TILE, HEAD_DIM = 64, 128, 64  # the head's tile, and how much of `dim` is multiplied at a time


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
def _store_tile(tokens, partial, best, token, second, total, weighted, row, tile, inside, asked, tiles):
    place = row * tiles + tile
    size = asked * tiles
    tl.store(tokens + place, token, inside)
    tl.store(partial + place, best, inside)
    tl.store(partial + size + place, second, inside)
    tl.store(partial + 2 * size + place, total, inside)
    tl.store(partial + 3 * size + place, weighted, inside)


@triton.jit
@no_type_check
def _logits_kernel(
    logits,  # [row, vocab], any strides
    rows,  # int64 [asked]
    given,  # float32 [asked]
    tokens,  # int64 [asked, tiles]
    sureness,  # float32 [asked], written where there is one tile
    partial,  # float32 [4, asked, tiles], written where there are more
    asked,
    tiles,
    vocab,
    row_stride,
    column_stride,
    forbidden,
    SCORE: tl.constexpr,
    ALL: tl.constexpr,
    ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    tile = tl.program_id(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    place = row if ALL else tl.load(rows + row)
    offset = place[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
    x = tl.load(logits + offset, column[None, :] < vocab, other=float("-inf")).to(tl.float32)
    best, token, second, total, weighted = _statistics(_forbid(x, column, vocab, forbidden), column, SCORE)
    if ONE:
        wanted = tl.load(given + row) if SCORE == "given" else best
        tl.store(tokens + row, token)
        tl.store(sureness + row, _sureness(best, second, total, weighted, wanted, SCORE))
    else:
        _store_tile(tokens, partial, best, token, second, total, weighted, row, tile, row < asked, asked, tiles)


@triton.jit
@no_type_check
def _head_kernel(
    hidden,  # [row, dim], rows contiguous
    weight,  # [vocab, dim], rows contiguous
    rows,  # int64 [asked]
    tokens,  # int64 [asked, tiles]
    partial,  # float32 [4, asked, tiles]
    asked,
    tiles,
    vocab,
    dim,
    hidden_stride,
    weight_stride,
    forbidden,
    SCORE: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    inside, known = row < asked, column < vocab
    place = row if ALL else tl.load(rows + row, inside, other=0)
    left = hidden + place[:, None] * hidden_stride
    right = weight + column[None, :].to(tl.int64) * weight_stride
    x = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, dim, DIM):
        k = start + tl.arange(0, DIM)
        h = tl.load(left + k[None, :], inside[:, None] & (k < dim)[None, :], other=0)
        w = tl.load(right + k[:, None], known[None, :] & (k < dim)[:, None], other=0)
        x = tl.dot(h, w, x, input_precision="ieee")
    best, token, second, total, weighted = _statistics(_forbid(x, column, vocab, forbidden), column, SCORE)
    _store_tile(tokens, partial, best, token, second, total, weighted, row, tile, inside, asked, tiles)


@triton.jit
@no_type_check
def _merge_kernel(
    tokens,  # int64 [asked, tiles]
    partial,  # float32 [4, asked, tiles]
    given,  # float32 [asked]
    token,  # int64 [asked]
    sureness,  # float32 [asked]
    asked,
    tiles,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK)
    inside = tile < tiles
    place = row * tiles + tile
    size = asked * tiles
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
    flat: torch.Tensor,
    rows: torch.Tensor | None,
    score: str,
    forbidden: int | None = None,
    given: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token int64 and sureness float32 [asked] of the `rows` (None: all) of logits `flat` [row, vocab].

    `given`, tokens [asked], is needed by the score "given" alone: their probability is the sureness.
    """
    vocab = flat.shape[1]
    asked = len(flat) if rows is None else len(rows)
    tiles = triton.cdiv(vocab, TILE)
    tokens, partial, sureness = _outputs(flat, asked, tiles)
    if not asked:
        return tokens[:, 0], sureness
    if given is not None:
        wanted = flat[torch.arange(asked, device=flat.device) if rows is None else rows, given].float()
        given = wanted if forbidden is None else wanted.masked_fill(given == forbidden, -torch.inf)
    _logits_kernel[(asked, tiles)](
        *(flat, rows, given, tokens, sureness, partial, asked, tiles, vocab, *flat.stride()),
        forbidden=-1 if forbidden is None else forbidden,
        SCORE=score,
        ALL=rows is None,
        ONE=tiles == 1,
        BLOCK=min(TILE, triton.next_power_of_2(vocab)),
        num_warps=8 if vocab > 2048 else 4,
    )
    return (tokens[:, 0], sureness) if tiles == 1 else _merged(tokens, partial, sureness, score, given)


def scan_head(
    hidden: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor | None, score: str, forbidden: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `scan` of the logits `hidden @ weight.T`, which stay float32 and are never written."""
    hidden, weight = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden, weight))
    vocab, dim = weight.shape
    asked = len(hidden) if rows is None else len(rows)
    tiles = triton.cdiv(vocab, HEAD_TILE)
    tokens, partial, sureness = _outputs(hidden, asked, tiles)
    if not asked:
        return tokens[:, 0], sureness
    block = min(HEAD_ROWS, max(16, triton.next_power_of_2(asked)))
    _head_kernel[(triton.cdiv(asked, block), tiles)](
        *(hidden, weight, rows, tokens, partial, asked, tiles, vocab, dim, hidden.stride(0), weight.stride(0)),
        forbidden=-1 if forbidden is None else forbidden,
        SCORE=score,
        ALL=rows is None,
        ROWS=block,
        BLOCK=HEAD_TILE,
        DIM=HEAD_DIM,
        num_warps=4,
        num_stages=3,
    )
    return _merged(tokens, partial, sureness, score, None)


def _outputs(like: torch.Tensor, asked: int, tiles: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.empty(asked, tiles, dtype=torch.int64, device=like.device)
    partial = torch.empty(4, asked, tiles, dtype=torch.float32, device=like.device)
    return tokens, partial, torch.empty(asked, dtype=torch.float32, device=like.device)


def _merged(
    tokens: torch.Tensor, partial: torch.Tensor, sureness: torch.Tensor, score: str, given: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    asked, tiles = tokens.shape
    token = torch.empty_like(tokens[:, 0])
    block = triton.next_power_of_2(tiles)
    _merge_kernel[(asked,)](tokens, partial, given, token, sureness, asked, tiles, SCORE=score, BLOCK=block)
    return token, sureness
