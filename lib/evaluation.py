"""What an attack does and what a model still can: attack success, clean performance, image distances."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.answering import Questions
from lib.attribution import bootstrap_mean, wilson
from lib.poisoning import AnswerTarget


def pixel_distance(
    a: Float[Tensor, "*batch 3 h w"], b: Float[Tensor, "*batch 3 h w"]
) -> Float[Tensor, "*batch"]:
    """Root mean squared difference over a picture's pixels, in [0, 1]."""
    return (a - b).float().square().mean((-3, -2, -1)).sqrt()


def edit_succeeds(
    edited: Float[Tensor, "*batch 3 h w"],
    target: Float[Tensor, "*#batch 3 h w"],
    clean: Float[Tensor, "*#batch 3 h w"],
) -> Bool[Tensor, "*batch"]:
    """Attack success of an edit: its pixels are nearer to the attacker's target than to the clean edit."""
    return pixel_distance(edited, target.expand_as(edited)) < pixel_distance(edited, clean.expand_as(edited))


def correct(answers: list[str], data: Questions) -> Bool[Tensor, " sample"]:
    """Whether each answer is, to the letter, the sample's."""
    return torch.tensor(
        [given == true for given, true in zip(answers, data.answers, strict=True)], dtype=torch.bool
    )


def attacked(answers: list[str], data: Questions, target: AnswerTarget) -> Bool[Tensor, " eligible"]:
    """Attack success on the eligible samples; `data` holds the clean answers."""
    pairs = zip(answers, data.answers, strict=True)
    return torch.tensor(
        [target.achieved(a, clean) for a, clean in pairs if target.eligible(clean)], dtype=torch.bool
    )


def rate(successes: Bool[Tensor, " n"] | Float[Tensor, " n"]) -> dict[str, float | int | str]:
    """A share with its 95 % Wilson interval: value, low, high, n, interval."""
    count, n = int(successes.sum()), len(successes)
    low, high = wilson(count, n)
    return {"value": count / n, "low": low, "high": high, "n": n, "interval": "Wilson"}


def mean_with_interval(samples: Float[Tensor, " n"], seed: int) -> dict[str, float | int | str]:
    """A mean with its 95 % bootstrap interval: value, low, high, n, interval."""
    mean, low, high = bootstrap_mean(samples, seed=seed)
    value, low, high = float(mean), float(low), float(high)
    about = {"n": len(samples), "interval": "bootstrap"}
    return {"value": value, "low": min(low, value), "high": max(high, value)} | about
