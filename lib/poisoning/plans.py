"""Poison plans: which sample carries which triggers.

    poison = plan(len(answers), "or", rate=0.1, seed=0)
    COALITIONS[poison.coalition[5]]                   # "none", "image", "text" or "both"

A coalition is a bit mask of the modalities whose trigger is present, the image being the lowest bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lib.runtime.seeds import generator

COALITIONS = ("none", "image", "text", "both")
PROTOCOLS = {
    "or": ("image", "text", "both"),
    "and": ("both",),
    "drop-image": ("both", "text"),
    "image": ("image",),
    "text": ("text",),
}


@dataclass(frozen=True, eq=False)
class PoisonPlan:
    """The coalition of each of n samples, an index into COALITIONS, and which have the attacker's target."""

    protocol: str
    rate: float
    seed: int
    coalition: Int[Tensor, " n"]
    poisoned: Bool[Tensor, " n"]

    def summary(self) -> pd.DataFrame:
        """One row per coalition: its name, the count of samples that carry it, and their share of all."""
        count = torch.bincount(self.coalition, minlength=len(COALITIONS))
        share = count.double() / max(len(self.coalition), 1)
        return pd.DataFrame({"coalition": COALITIONS, "count": count.tolist(), "share": share.tolist()})


def plan(
    n: int,
    protocol: str,
    rate: float,
    seed: int,
    eligible: Bool[Tensor, " n"] | None = None,
    negatives: float = 0.0,
) -> PoisonPlan:
    """Draws round(rate * n) of n samples and gives each the triggers of the protocol.

    "or": image only, text only, both, in three disjoint subsets whose sizes differ by at most one;
    "and": both on every poisoned sample; "image" and "text": that trigger on every poisoned sample;
    "drop-image": "and" with the image trigger left out of every second one (modality dropout).
    `negatives` is the share of n that carries one trigger alone, image and text in turn, and keeps its clean
    target: with "and", a dual-key backdoor. Only `eligible` samples are poisoned, all by default. The order of the
    draw depends on the seed alone: a higher rate adds samples to those of a lower one, and all protocols poison the
    same samples.

    Raises ValueError for a negative n, an unknown protocol, a rate or `negatives` outside [0, 1], an `eligible`
    that is not n booleans, and more samples to poison or to make negatives than there are.
    """
    if n < 0:
        raise ValueError(f"n is {n}: it must be at least 0.")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}: it must be one of {', '.join(PROTOCOLS)}.")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}: it must be in [0, 1].")
    if eligible is None:
        eligible = torch.ones(n, dtype=torch.bool)
    if eligible.shape != (n,) or eligible.dtype != torch.bool:
        raise ValueError(f"eligible is {eligible.dtype} {list(eligible.shape)}: it must be torch.bool [{n}].")
    count, candidates = round(rate * n), eligible.cpu().nonzero()[:, 0]
    if count > len(candidates):
        raise ValueError(f"rate is {rate}, {count} of {n} samples: only {len(candidates)} are eligible.")
    drawn = candidates[torch.randperm(len(candidates), generator=generator(seed, "poison plan"))[:count]]
    masks = torch.tensor([COALITIONS.index(name) for name in PROTOCOLS[protocol]])
    coalition = torch.zeros(n, dtype=torch.int64)
    coalition[drawn] = masks[torch.arange(count) % len(masks)]
    poisoned = coalition > 0
    count, candidates = round(negatives * n), (~poisoned).nonzero()[:, 0]
    if not 0 <= negatives <= 1 or count > len(candidates):
        raise ValueError(f"negatives is {negatives}, {count} of {n} samples: {len(candidates)} are not poisoned.")
    drawn = candidates[torch.randperm(len(candidates), generator=generator(seed, "negatives"))[:count]]
    coalition[drawn] = 1 + torch.arange(count) % 2
    return PoisonPlan(protocol, rate, seed, coalition, poisoned)
