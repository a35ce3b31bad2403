"""Kernels of `fisher`: Fisher probes with their noise made where it is used, and sums of squares.

With w = exp((x − m) / 2), m the maximum and Z = Σ w² of a row of logits x, √p = w / √Z. A program of a tile of the
vocabulary counts m, Z and Σ w ε for every probe. Where a row is one tile, that is all it needs to write the probes;
of more tiles a second kernel merges the sums as in an online softmax (arXiv 1805.02867) and draws the same noise again,
which costs less than to keep it. Each probe is written once, no noise or probability ever; all is counted in float32.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl

TILE = 4096  # entries of a program
ROWS, DIM = 16, 128  # gradients of a program, and how much of each is read at a time


@triton.jit
@no_type_check
def _draw(seed, place, group, size, NOISE: tl.constexpr):
    """What `_noise` makes the noise of a group of probes from: 32 bits for 32 of them, or one normal number for one."""
    if NOISE == "sign":
        return tl.randint(seed, place + group * size)
    else:
        return tl.randn(seed, place + group * size)


@triton.jit
@no_type_check
def _noise(drawn, member, NOISE: tl.constexpr):
    """Noise of the group's probe of that number."""
    if NOISE == "sign":
        return 1.0 - 2.0 * ((drawn >> member) & 1).to(tl.float32)
    else:
        return drawn


@triton.jit
@no_type_check
def _weights(logits, row, column, vocab, row_stride, column_stride):
    """w = exp((x − m) / 2) of a tile, which is NaN where x is NaN or +inf, and its m."""
    offset = row * row_stride + column.to(tl.int64) * column_stride
    x = tl.load(logits + offset, column < vocab, other=float("-inf")).to(tl.float32)
    best = tl.max(tl.where(x == x, x, float("-inf")), 0)
    return tl.exp((x - tl.where(best == float("-inf"), 0.0, best)) / 2), best


@triton.jit(do_not_specialize=["rows", "probes", "seed"])
@no_type_check
def _sums_kernel(
    logits,  # [row, vocab], any strides
    out,  # float32 [probe, row, vocab], written where there is one tile
    partial,  # float32 [2 + probe, row, tile]: m, Z and Σ w ε; written where there are more
    rows,
    vocab,
    tiles,
    probes,
    seed,
    row_stride,
    column_stride,
    NOISE: tl.constexpr,
    GROUP: tl.constexpr,
    ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    size = rows.to(tl.int64) * vocab
    weight, best = _weights(logits, row, column, vocab, row_stride, column_stride)
    total = tl.sum(weight * weight, 0)
    root = weight / tl.sqrt(total)
    place = row * vocab + column
    step = rows.to(tl.int64) * tiles
    here = partial + row * tiles + tile
    if not ONE:
        tl.store(here, best)
        tl.store(here + step, total)
    for group in range(0, tl.cdiv(probes, GROUP)):
        drawn = _draw(seed, place, group, size, NOISE)
        for probe in range(group * GROUP, min(probes, (group + 1) * GROUP)):
            epsilon = _noise(drawn, probe - group * GROUP, NOISE)
            if ONE:
                dot = tl.sum(root * epsilon, 0)
                tl.store(out + probe * size + place, root * epsilon - root * root * dot, column < vocab)
            else:
                tl.store(here + (2 + probe) * step, tl.sum(weight * epsilon, 0))


@triton.jit(do_not_specialize=["rows", "probes", "seed"])
@no_type_check
def _write_kernel(
    logits,  # [row, vocab], any strides
    out,  # float32 [probe, row, vocab]
    partial,  # float32 [2 + probe, row, tile]
    rows,
    vocab,
    tiles,
    probes,
    seed,
    row_stride,
    column_stride,
    NOISE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    size = rows.to(tl.int64) * vocab
    step = rows.to(tl.int64) * tiles
    other = tl.arange(0, TILES)
    here = partial + row * tiles + other
    bests = tl.load(here, other < tiles, other=float("-inf"))
    totals = tl.load(here + step, other < tiles, other=0.0)
    best = tl.max(bests, 0)
    scale = tl.exp((bests - best) / 2)
    total = tl.sum(totals * scale * scale, 0)
    weight, own = _weights(logits, row, column, vocab, row_stride, column_stride)
    root = weight * (tl.exp((own - best) / 2) / tl.sqrt(total))
    place = row * vocab + column
    for group in range(0, tl.cdiv(probes, GROUP)):
        drawn = _draw(seed, place, group, size, NOISE)
        for probe in range(group * GROUP, min(probes, (group + 1) * GROUP)):
            epsilon = _noise(drawn, probe - group * GROUP, NOISE)
            sums = tl.load(here + (2 + probe) * step, other < tiles, other=0.0)
            dot = tl.sum(sums * scale, 0) / tl.sqrt(total)
            tl.store(out + probe * size + place, root * epsilon - root * root * dot, column < vocab)


@triton.jit
@no_type_check
def _squares_kernel(
    scores,  # float32 [batch, token], any strides; added to
    gradient,  # [batch, token, dim], any strides
    gradients,
    tokens,
    dim,
    scores_batch,
    scores_token,
    batch_stride,
    token_stride,
    dim_stride,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    batch, token = place // tokens, place % tokens
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, dim, DIM):
        part = start + tl.arange(0, DIM)
        inside = (place < gradients)[:, None] & (part < dim)[None, :]
        offset = (batch * batch_stride + token * token_stride)[:, None] + part.to(tl.int64)[None, :] * dim_stride
        x = tl.load(gradient + offset, inside, other=0.0).to(tl.float32)
        total += tl.sum(x * x, 1)
    where = scores + batch * scores_batch + token * scores_token
    tl.store(where, tl.load(where, place < gradients, other=0.0) + total, place < gradients)


def probes_of(flat: torch.Tensor, probes: int, seed: int, noise: str) -> torch.Tensor:
    """Probes float32 [probe, row, vocab] of logits `flat` [row, vocab]."""
    rows, vocab = flat.shape
    out = torch.empty(probes, rows, vocab, dtype=torch.float32, device=flat.device)
    tiles = triton.cdiv(vocab, TILE)
    partial = torch.empty(2 + probes, rows, tiles, dtype=torch.float32, device=flat.device)
    given = (flat, out, partial, rows, vocab, tiles, probes, seed, *flat.stride())
    options = {"NOISE": noise, "GROUP": _group(noise), "BLOCK": min(TILE, triton.next_power_of_2(vocab))}
    if rows:
        _sums_kernel[(rows, tiles)](*given, **options, ONE=tiles == 1, num_warps=8)
        if tiles > 1:
            _write_kernel[(rows, tiles)](*given, **options, TILES=triton.next_power_of_2(tiles), num_warps=8)
    return out


def add_squares(scores: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """scores [batch, token] += Σ gradient² over the last dimension of [batch, token, dim], in place."""
    batch, tokens, dim = gradient.shape
    count = batch * tokens
    if count:
        _squares_kernel[(triton.cdiv(count, ROWS),)](
            *(scores, gradient, count, tokens, dim, *scores.stride(), *gradient.stride()), ROWS=ROWS, DIM=DIM
        )
    return scores


def _group(noise: str) -> int:
    return 32 if noise == "sign" else 1
