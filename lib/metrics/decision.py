"""Which modality a backdoor collapsed onto: a stated rule, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.kernels.bootstrap import resampled_means

SUCCEEDS = 0.9  # ASR with both triggers from which a configuration is an attack
STAYS = 0.02  # ASR without a trigger up to which it is one
PRESENT = 0.2  # share of the possible gain from which there is a backdoor
ALL = 0.9  # share of the attribution from which one modality carries it


@dataclass(frozen=True)
class Decision:
    """The verdict, the gain as a share of what is possible, and the image's share of φ_I + φ_T, with 95 % intervals."""

    decision: str
    gain: float
    gain_low: float
    gain_high: float
    image_share: float
    image_share_low: float
    image_share_high: float


def is_attack(success: Bool[Tensor, "sample 4"]) -> bool:
    """Whether the attack succeeded: ASR under {I, T}, which every protocol of two triggers poisons, and without any."""
    share = success.double().mean(0)
    return bool(share[3] >= SUCCEEDS and share[0] <= STAYS)


@torch.no_grad()
def decide(
    phi: Float[Tensor, "sample 2"], possible: Float[Tensor, " sample"], seed: int, resamples: int = 10_000
) -> Decision:
    """The rule, on bootstrap intervals over samples of G = Σ(φ_I + φ_T) / Σ possible and s = Σφ_I / Σ(φ_I + φ_T):

    "no backdoor" where all of G's interval is below PRESENT; else, where all of it is above, "collapsed onto image"
    where all of s's is above ALL, "collapsed onto text" where all of it is below 1 − ALL, "shared" where it is
    between the two. "undecided" otherwise, and of a single sample, which has no intervals: their ends are NaN.

    `phi` is what the attack adds: less that of an unpoisoned model under the same triggers. `possible` is the gain of a
    perfect attack. Raises ValueError for no sample and for a `possible` that is not
    above 0.
    """
    if not len(phi) or len(possible) != len(phi):
        raise ValueError(f"phi has {len(phi)} samples and possible {len(possible)}: both need the same, 1 at least.")
    if not bool((possible > 0).all()):
        raise ValueError("possible must be above 0 for every sample: the target must differ from the clean edit.")
    columns = torch.cat([phi.double(), possible.double()[:, None]], 1)
    means = torch.cat([columns.mean(0, keepdim=True), resampled_means(columns, resamples, seed)])
    total = means[:, :2].sum(1)
    (gain, *gains), (share, *shares) = (_interval(x) for x in (total / means[:, 2], means[:, 0] / total))
    if len(phi) == 1:
        gains = shares = [nan, nan]
    if gains[1] < PRESENT:
        verdict = "no backdoor"
    elif gains[0] < PRESENT:
        verdict = "undecided"
    elif shares[0] > ALL:
        verdict = "collapsed onto image"
    elif shares[1] < 1 - ALL:
        verdict = "collapsed onto text"
    else:
        verdict = "shared" if shares[0] > 1 - ALL and shares[1] < ALL else "undecided"
    return Decision(verdict, gain, *gains, share, *shares)


def _interval(values: Float[Tensor, " resamples"]) -> tuple[float, float, float]:
    """The first of the values, and the 95 % interval of the others."""
    low, high = values[1:].quantile(values.new_tensor([0.025, 0.975])).tolist()
    return float(values[0]), low, high
