"""How the end of an answer is treated while it is decoded.

While all is masked the end token is often the surest, as answers of many lengths end and are filled up with it: settled
first, it fixes the length before the content. The published codes differ in what they do about it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# "free": the end token is a token like any other, as in LLaDA's `generate` by default and in Fast-dLLM.
# "last": a position that proposes it waits for all of its block that propose something else (what LLaDA's
#     `confidence_eos_eot_inf` says: confidence −∞; its code at commit b7e6c35 does so for the end of turn alone).
# "suppressed": it is never emitted (LLaDA's `logits_eos_inf`): the answer has as many tokens as there is room for.
# "stop": as soon as one stands, nothing behind it is decoded any more (LLaDA-V's and DiSP's `stopping_criteria`).
# LLaDA-V and DiSP also never emit the token that fills a batch up, "<|endoftext|>", and three more: these are
# `LladaVConfig.forbidden`, whatever is chosen here.
ENDS = ("free", "last", "suppressed", "stop")


class Ending:
    """One of `ENDS` in a decoding loop, which asks it at every step. `generable` as `decode` takes it."""

    def __init__(self, end: str, eos_id: int | None, mask_id: int, generable: Bool[Tensor, "batch length"]):
        self.end, self.eos_id, self.mask_id, self.generable = end, eos_id, mask_id, generable

    def allowed(self, logits: Float[Tensor, "row position vocab"]) -> Float[Tensor, "row position vocab"]:
        """The logits, −∞ at an end token that is suppressed."""
        if self.end != "suppressed":
            return logits
        is_end = torch.arange(logits.shape[-1], device=logits.device) == self.eos_id
        return logits.masked_fill(is_end, -math.inf)

    def waiting(
        self, proposed: Int[Tensor, "row position"], masked: Bool[Tensor, "row position"]
    ) -> Bool[Tensor, "row position"] | None:
        """Which positions propose the end token while a masked one of their row proposes something else."""
        if self.end != "last":
            return None
        is_end = proposed == self.eos_id
        return is_end & (masked & ~is_end).any(1, keepdim=True)

    def left(
        self,
        filled: Int[Tensor, "batch length"],
        rows: Int[Tensor, " row"],
        positions: Int[Tensor, "row position"],
        masked: Bool[Tensor, "row position"],
    ) -> Bool[Tensor, "row position"]:
        """Which of the masked positions are still to be decoded: with "stop" none behind an end token."""
        if self.end != "stop":
            return masked
        ended = (self.generable & (filled == self.eos_id))[rows].cumsum(1) > 0
        return masked & ~ended.gather(1, positions)

    def completed(self, filled: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """What was not decoded filled up with the end token."""
        if self.end != "stop":
            return filled
        return filled.masked_fill(self.generable & (filled == self.mask_id), self.eos_id)


def check_end(end: str, eos_id: int | None, mask_id: int) -> None:
    """Raises ValueError for another way than `ENDS`, for what can be no end token, and for none where one is needed."""
    if end not in ENDS:
        raise ValueError(f"end is {end!r}; allowed are {', '.join(ENDS)}.")
    if eos_id is not None and not (isinstance(eos_id, int) and eos_id >= 0 and eos_id != mask_id):
        raise ValueError(f"eos_id is {eos_id!r}; allowed are integers from 0 but mask_id, or None.")
    if eos_id is None and end != "free":
        raise ValueError(f"eos_id is None; allowed with end={end!r} are integers from 0: the id of the end token.")
