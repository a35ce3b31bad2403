"""Masked-diffusion decoding: un-mask a response block by block, the surest positions first.

The rule is LLaDA's low-confidence remasking with semi-autoregressive blocks (arXiv 2502.09992). Which
positions are still masked is kept as a boolean mask of its own, never read off the token values, so masked
positions elsewhere in the sequence are left alone and a model cannot re-open a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.kernels.confidence import confidence, token_probability
from lib.models.ending import Ending, check_end

REMASKING = ("low_confidence", "margin", "entropy", "random")

LogitsFn = Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch length vocab"]]


@runtime_checkable
class Selective(Protocol):
    """What may stand for a `logits_fn`: it computes logits of the masked positions only, of rows that have any."""

    def start_block(self, block: Int[Tensor, "batch block"]) -> None:
        """The positions to be filled next. Until the next call all others keep their tokens, and rows only drop out."""

    def logits_at(
        self, tokens: Int[Tensor, "batch length"], rows: Int[Tensor, " row"], positions: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        """Logits at positions of the block, of the rows (ascending) that are named. Writes on no argument.

        All that is masked is asked for; where a row has less of it than another, filled positions beside it.
        """


class Decoded(NamedTuple):
    """Filled tokens, and of each the probability (float64) it had when it was settled; 1 where it was given.

    End tokens and what fills the response up behind the first count as any other: a least or a mean probability over a
    response is one over its fill too. With `end` = "stop" what stands behind the end was not decoded, and has 1.
    """

    tokens: Int[Tensor, "batch length"]
    probability: Float[Tensor, "batch length"]


def generate(
    logits_fn: LogitsFn | Selective,
    tokens: Int[Tensor, "batch length"],
    generable: Bool[Tensor, "batch length"],
    *,
    steps: int,
    block_length: int,
    mask_id: int,
    temperature: float | int = 0.0,
    remasking: str = "low_confidence",
    threshold: float | int | None = None,
    eos_id: int | None = None,
    end: str = "free",
    seed: int | None = None,
) -> Int[Tensor, "batch length"]:
    """Fill the `generable` positions of `tokens`; all others keep their value, even where it is `mask_id`.

    Generable positions start as `mask_id`, whatever they hold. Blocks take them in order, `block_length` at a
    time, the last one what is left. At each step every masked position of the block proposes a token, and the
    surest ones are filled: with s steps per block, a block of n positions fills ⌊n/s⌋ a step and one more in
    the first n mod s; steps that would fill none are skipped. At temperature 0 the tokens are LLaDA's
    low-confidence decoding's.

    logits_fn    [batch, length] tokens → [batch, length, vocab] logits of any floating dtype; or a `Selective`, which
                 is asked for less: a model's `response_logits`. Rows may be padded: that is the model's affair.
    tokens       int64 or int32, on any device. Left unmodified; the result is a new tensor.
    generable    Rows may differ in which positions they fill, not in how many. None: the input comes back.
    steps        Total, shared evenly by the blocks. With a threshold it does not limit the steps taken.
    mask_id      Never emitted: its logit counts as −∞, in the choice of the token and in its probability.
    temperature  0 takes the arg-max token, the lowest id on ties. Above, tokens are drawn from
                 softmax(logits / temperature) by Gumbel-max in float64.
    remasking    What ranks the masked positions, by the softmax of the logits whatever the temperature; the earliest
                 position on ties. "low_confidence": the probability of the proposed token. "margin": the highest
                 probability minus the second. "entropy": least entropy first. (Dream's three, arXiv 2508.15487.)
                 "random": random order.
    threshold    In (0, 1]: each step fills every position whose token has at least this probability, whatever
                 `remasking` is, and the first in rank in every row, until the block is full.
    eos_id       The end token; needed where `end` is not "free".
    end          What is done about its being surest at first, see `lib.models.ending`. "last": in rank, positions that
                 propose it come after all of their block's that propose something else, and until there are none of
                 those the threshold does not fill them; a quota is met all the same. "suppressed": its logit counts as
                 −∞, as that of `mask_id`. "stop": what stands behind the first that is settled is not decoded, but is
                 filled with it.
    seed         Of the draws at temperature > 0 and of random remasking; None draws a fresh one.

    Raises ValueError for wrong shapes or dtypes, rows with unequal numbers of generable positions, steps that
    the number of blocks does not divide, other options outside the above, and logits at a position to fill
    that are NaN, +∞, or −∞ for every token that may be emitted.
    """
    options = {"temperature": temperature, "remasking": remasking, "threshold": threshold, "seed": seed}
    sizes = {"steps": steps, "block_length": block_length, "mask_id": mask_id, "eos_id": eos_id, "end": end}
    return decode(logits_fn, tokens, generable, **sizes, **options).tokens


@torch.no_grad()
def decode(
    logits_fn: LogitsFn | Selective,
    tokens: Int[Tensor, "batch length"],
    generable: Bool[Tensor, "batch length"],
    *,
    steps: int,
    block_length: int,
    mask_id: int,
    temperature: float | int = 0.0,
    remasking: str = "low_confidence",
    threshold: float | int | None = None,
    eos_id: int | None = None,
    end: str = "free",
    seed: int | None = None,
) -> Decoded:
    """As `generate`, with the tokens' probabilities beside them."""
    _check_tokens(tokens, generable)
    _check_options(steps, block_length, mask_id, tokens.dtype, temperature, remasking, threshold, seed)
    check_end(end, eos_id, mask_id)
    blocks = _blocks(generable, block_length, steps)
    generator = torch.Generator(tokens.device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    model = logits_fn if isinstance(logits_fn, Selective) else _Everywhere(logits_fn)

    ending = Ending(end, eos_id, mask_id, generable)
    filled = tokens.masked_fill(generable, mask_id)
    settled = torch.ones(tokens.shape, dtype=torch.float64, device=tokens.device)
    for block in blocks:
        model.start_block(block)
        rows, positions, masked = _opened(block, filled, ending)
        quotas = _quotas(block.shape[1], steps // len(blocks)) if threshold is None else repeat(1)
        for quota in quotas:
            if not len(rows):
                break
            logits = ending.allowed(_checked(model.logits_at(filled, rows, positions), positions.shape))
            proposed, probability, score = _propose(logits, mask_id, temperature, remasking, generator)
            waits = ending.waiting(proposed, masked)
            take = _surest(score, masked, waits, quota) & masked  # a row may have fewer left than the quota
            if threshold is not None:
                sure = (probability >= threshold) & masked
                take |= sure if waits is None else sure & ~waits
            index = rows[:, None], positions
            filled = filled.index_put(index, torch.where(take, proposed.to(filled.dtype), filled[index]))
            settled[index] = torch.where(take, probability, settled[index])

            invalid = (probability.isnan() & masked).any(1)
            left = ending.left(filled, rows, positions, masked & ~take)
            rows, positions, masked = _still_masked(rows, positions, left, invalid)
    return Decoded(ending.completed(filled), settled)


def _opened(
    block: Int[Tensor, "batch block"], filled: Int[Tensor, "batch length"], ending: Ending
) -> tuple[Int[Tensor, " open"], Int[Tensor, "open left"], Bool[Tensor, "open left"]]:
    """Positions of a block still masked, of rows that have any: earliest first, then others where a row has fewer."""
    rows, masked = torch.arange(len(block), device=block.device), torch.ones_like(block, dtype=torch.bool)
    if ending.end != "stop":
        return rows, block, masked
    masked = ending.left(filled, rows, block, masked)  # a row may end in an earlier block
    return _still_masked(rows, block, masked, torch.zeros_like(rows, dtype=torch.bool))


def _still_masked(
    rows: Int[Tensor, " row"],
    positions: Int[Tensor, "row position"],
    masked: Bool[Tensor, "row position"],
    invalid: Bool[Tensor, " row"],
) -> tuple[Int[Tensor, " open"], Int[Tensor, "open left"], Bool[Tensor, "open left"]]:
    """The rows that are not full, with as many positions as the one with most left has masked, masked ones first.

    Raises ValueError where logits at a position to fill were `refused`.
    """
    remaining = masked.sum(1).masked_fill(invalid, -1).tolist()  # the step's one wait for the device
    if min(remaining) < 0:
        raise ValueError(
            "logits_fn returned NaN, +inf, or -inf for every token at a position to fill; allowed are finite "
            "numbers and -inf, with one finite at least beside those of mask_id and of a suppressed end."
        )
    if not max(remaining):
        return rows[:0], positions[:0], masked[:0]
    order = masked.byte().argsort(dim=1, descending=True, stable=True)[:, : max(remaining)]
    positions, masked = positions.gather(1, order), masked.gather(1, order)
    if min(remaining):
        return rows, positions, masked
    unfinished = [row for row, count in enumerate(remaining) if count]
    return rows[unfinished], positions[unfinished], masked[unfinished]


class _Everywhere:
    """A function that gives all logits, as a `Selective`."""

    def __init__(self, logits_fn: LogitsFn):
        self.logits_fn = logits_fn

    def start_block(self, block: Tensor) -> None:
        pass

    def logits_at(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        return _checked(self.logits_fn(tokens), tokens.shape)[rows[:, None], positions]


def _checked(logits: Tensor, shape: torch.Size) -> Tensor:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits_fn returned {kind}; allowed are tensors of a floating dtype.")
    if logits.ndim != 3 or logits.shape[:2] != shape or logits.shape[2] == 0:
        raise ValueError(
            f"logits_fn returned shape {list(logits.shape)}; allowed is [*{list(shape)}, vocab] with vocab at least 1."
        )
    return logits


def _blocks(generable: Tensor, block_length: int, steps: int) -> tuple[Int[Tensor, "batch block"], ...]:
    """Positions of each block, in order; no blocks when nothing is generable."""
    counts = generable.sum(1)
    if not counts.any():
        return ()
    count = int(counts[0])
    if (counts != count).any():
        raise ValueError(f"generable has {counts.tolist()} positions by row; allowed is the same number in all.")
    blocks = generable.nonzero()[:, 1].view(-1, count).split(block_length, dim=1)
    if steps % len(blocks):
        raise ValueError(f"steps is {steps}; allowed are multiples of the number of blocks, {len(blocks)}.")
    return blocks


def _quotas(n: int, steps: int) -> Iterator[int]:
    """How many of n positions each step fills: those that fill none come last."""
    return (n // steps + (step < n % steps) for step in range(steps))


def _propose(
    logits: Float[Tensor, "row position vocab"],
    mask_id: int,
    temperature: float | int,
    remasking: str,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row position"], Float[Tensor, "row position"]]:
    """Tokens, arg-max at temperature 0 and drawn by Gumbel-max above; their probabilities; what ranks them."""
    if temperature == 0:
        token, probability = confidence(logits, forbidden=mask_id)
    else:
        noisy = logits - temperature * (-_uniform(logits, generator).log()).log()
        noisy[..., mask_id : mask_id + 1] = -math.inf  # an empty slice where the vocabulary has no mask token
        token = noisy.argmax(-1)
        probability = token_probability(logits, token, forbidden=mask_id)
    if remasking == "low_confidence":
        score = probability
    elif remasking == "random":
        score = _uniform(probability, generator)
    else:
        score = confidence(logits, score=remasking, forbidden=mask_id)[1]
    return token, probability.double(), score


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device)


def _surest(
    score: Float[Tensor, "row position"],
    masked: Bool[Tensor, "row position"],
    waits: Bool[Tensor, "row position"] | None,
    quota: int,
) -> Bool[Tensor, "row position"]:
    """The `quota` highest scores among the masked of each row, those that wait last; the earliest on ties."""
    order = score.masked_fill(~masked, -math.inf).argsort(dim=1, descending=True, stable=True)
    if waits is not None:
        order = order.gather(1, waits.gather(1, order).byte().argsort(dim=1, stable=True))
    return torch.zeros_like(masked).scatter(1, order[:, :quota], True)


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
