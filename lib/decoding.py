"""Masked-diffusion decoding: un-mask a response block by block, the surest positions first.

The rule is LLaDA's low-confidence remasking with semi-autoregressive blocks (arXiv 2502.09992). Which
positions are still masked is kept as a boolean mask of its own, never read off the token values, so masked
positions elsewhere in the sequence are left alone and a model cannot re-open a position.
"""

import math
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

REMASKING = ("low_confidence", "random")


class Decoded(NamedTuple):
    """Filled tokens, and of each the probability (float64) it had when it was settled; 1 where it was given."""

    tokens: Int[Tensor, "batch length"]
    probability: Float[Tensor, "batch length"]


def generate(
    logits_fn: Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch length vocab"]],
    tokens: Int[Tensor, "batch length"],
    generable: Bool[Tensor, "batch length"],
    *,
    steps: int,
    block_length: int,
    mask_id: int,
    temperature: float | int = 0.0,
    remasking: str = "low_confidence",
    threshold: float | int | None = None,
    seed: int | None = None,
) -> Int[Tensor, "batch length"]:
    """Fill the `generable` positions of `tokens`; all others keep their value, even where it is `mask_id`.

    Generable positions start as `mask_id`, whatever they hold. Blocks take them in order, `block_length` at a
    time, the last one what is left. At each step every masked position of the block proposes a token, and the
    surest ones are filled: with s steps per block, a block of n positions fills ⌊n/s⌋ a step and one more in
    the first n mod s; steps that would fill none are skipped. At temperature 0 the tokens are LLaDA's
    low-confidence decoding's.

    logits_fn    [batch, length] tokens → [batch, length, vocab] logits of any floating dtype.
    tokens       int64 or int32. Left unmodified; the result is a new tensor.
    generable    Rows may differ in which positions they fill, not in how many. None: the input comes back.
    steps        Total, shared evenly by the blocks. With a threshold it does not limit the steps taken.
    mask_id      Never emitted: its logit counts as −∞, in the choice of the token and in its probability.
    temperature  0 takes the arg-max token, the lowest id on ties. Above, tokens are drawn from
                 softmax(logits / temperature) by Gumbel-max in float64.
    remasking    "low_confidence": surest = highest probability (float64 softmax of the logits, whatever the
                 temperature) of the proposed token, the earliest position on ties. "random": random order.
    threshold    In (0, 1]: each step fills every position whose token has at least this probability, and at
                 least one per row, until the block is full.
    seed         Of the draws at temperature > 0 and of random remasking; None draws a fresh one.

    Raises ValueError for wrong shapes or dtypes, rows with unequal numbers of generable positions, steps that
    the number of blocks does not divide, other options outside the above, and logits at a position to fill
    that are NaN, +∞, or −∞ for every token but `mask_id`.
    """
    options = {"temperature": temperature, "remasking": remasking, "threshold": threshold, "seed": seed}
    sizes = {"steps": steps, "block_length": block_length, "mask_id": mask_id}
    return decode(logits_fn, tokens, generable, **sizes, **options).tokens


@torch.no_grad()
def decode(
    logits_fn: Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch length vocab"]],
    tokens: Int[Tensor, "batch length"],
    generable: Bool[Tensor, "batch length"],
    *,
    steps: int,
    block_length: int,
    mask_id: int,
    temperature: float | int = 0.0,
    remasking: str = "low_confidence",
    threshold: float | int | None = None,
    seed: int | None = None,
) -> Decoded:
    """As `generate`, with the tokens' probabilities beside them."""
    _check_tokens(tokens, generable)
    _check_options(steps, block_length, mask_id, tokens.dtype, temperature, remasking, threshold, seed)
    blocks = _blocks(generable, block_length, steps)
    generator = torch.Generator(tokens.device)
    generator.seed() if seed is None else generator.manual_seed(seed)

    filled = tokens.masked_fill(generable, mask_id)
    sureness = torch.ones(tokens.shape, dtype=torch.float64, device=tokens.device)
    for block in blocks:
        masked = torch.ones_like(block, dtype=torch.bool)
        quotas = _quotas(block.shape[1], steps // len(blocks)) if threshold is None else repeat(1)
        for quota in quotas:
            rows, columns = masked.nonzero(as_tuple=True)
            positions = block[rows, columns]
            logits = _logits_at(rows, positions, logits_fn(filled), filled, mask_id)
            proposed = _propose(logits, temperature, generator)
            probability = logits.softmax(-1).gather(-1, proposed[:, None])[:, 0]
            score = probability if remasking == "low_confidence" else _uniform(probability, generator)
            take = _surest(score, masked, quota)
            if threshold is not None:
                take |= probability >= threshold
            settled = rows[take], positions[take]
            filled = filled.index_put(settled, proposed[take].to(filled.dtype))
            sureness[settled] = probability[take]
            masked[rows[take], columns[take]] = False
            if not masked.any():
                break
    return Decoded(filled, sureness)


def _blocks(generable: Tensor, block_length: int, steps: int) -> tuple[Int[Tensor, "batch block"], ...]:
    """Positions of each block, in order; no blocks when nothing is generable."""
    counts = generable.sum(1)
    if not counts.any():
        return ()
    count = int(counts[0])
    if (counts != count).any():
        raise ValueError(
            f"generable has {counts.tolist()} positions by row; allowed is the same number in all."
        )
    blocks = generable.nonzero()[:, 1].view(-1, count).split(block_length, dim=1)
    if steps % len(blocks):
        raise ValueError(f"steps is {steps}; allowed are multiples of the number of blocks, {len(blocks)}.")
    return blocks


def _quotas(n: int, steps: int) -> Iterator[int]:
    """How many of n positions each step fills: those that fill none come last."""
    return (n // steps + (step < n % steps) for step in range(steps))


def _logits_at(
    rows: Int[Tensor, "open"], positions: Int[Tensor, "open"], logits: Tensor, tokens: Tensor, mask_id: int
) -> Float[Tensor, "open vocab"]:
    """Float64 logits at the given positions, that of `mask_id` at −∞; refuses those without a softmax."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits_fn returned {kind}; allowed are tensors of a floating dtype.")
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or logits.shape[2] == 0:
        raise ValueError(
            f"logits_fn returned shape {list(logits.shape)}; allowed is [batch, length, vocab] with "
            f"[batch, length] = {list(tokens.shape)} and vocab at least 1."
        )
    picked = logits[rows, positions].double()
    refused = picked.isnan().any()
    picked[:, mask_id : mask_id + 1] = -math.inf  # an empty slice where the vocabulary has no mask token
    if refused or not picked.amax(-1).isfinite().all():
        raise ValueError(
            "logits_fn returned NaN, +inf, or -inf for every token at a position to fill; allowed are finite "
            "numbers and -inf, with one finite at least beside that of mask_id."
        )
    return picked


def _propose(
    logits: Float[Tensor, "open vocab"], temperature: float | int, generator: torch.Generator
) -> Int[Tensor, "open"]:
    """Arg-max token at temperature 0; above, a draw from softmax(logits / temperature) by Gumbel-max."""
    if temperature == 0:
        return logits.argmax(-1)
    return (logits - temperature * (-_uniform(logits, generator).log()).log()).argmax(-1)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device)


def _surest(
    score: Float[Tensor, "open"], masked: Bool[Tensor, "batch block"], quota: int
) -> Bool[Tensor, "open"]:
    """Which masked positions have one of the `quota` highest scores of their row; the earliest on ties."""
    ranked = score.new_full(masked.shape, -math.inf).masked_scatter(masked, score)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(masked).scatter(1, order[:, :quota], True)[masked]


def _check_tokens(tokens: Tensor, generable: Tensor) -> None:
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens is {kind}; allowed are int64 and int32 tensors.")
    if tokens.ndim != 2:
        raise ValueError(f"tokens has shape {list(tokens.shape)}; allowed is [batch, length].")
    if not isinstance(generable, Tensor) or generable.dtype != torch.bool:
        kind = generable.dtype if isinstance(generable, Tensor) else type(generable).__name__
        raise ValueError(f"generable is {kind}; allowed are boolean tensors.")
    if generable.shape != tokens.shape:
        raise ValueError(
            f"generable has shape {list(generable.shape)}; allowed is that of tokens, {list(tokens.shape)}."
        )


def _check_options(steps, block_length, mask_id, dtype, temperature, remasking, threshold, seed) -> None:
    integers = {"steps": (steps, 1), "block_length": (block_length, 1), "mask_id": (mask_id, 0)}
    for name, (value, least) in integers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; allowed are integers from {least}.")
    if mask_id > torch.iinfo(dtype).max:
        raise ValueError(f"mask_id is {mask_id}; allowed is what fits the tokens' {dtype}.")
    if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}; allowed are finite numbers from 0.")
    if remasking not in REMASKING:
        raise ValueError(f"remasking is {remasking!r}; allowed are {', '.join(REMASKING)}.")
    if threshold is not None and not (isinstance(threshold, int | float) and 0 < threshold <= 1):
        raise ValueError(f"threshold is {threshold!r}; allowed are numbers above 0 and up to 1, or None.")
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**63):
        raise ValueError(f"seed is {seed!r}; allowed are the integers 0 to 2**63 - 1, or None.")
