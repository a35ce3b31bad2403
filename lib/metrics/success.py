"""What an attack does and what a model still can: attack success, clean performance, image distances."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.poisoning.targets import AnswerTarget


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


def correct(answers: list[str], clean: list[str]) -> Bool[Tensor, " sample"]:
    """Whether each answer is, to the letter, the clean one. Raises ValueError where they are not as many."""
    return torch.tensor([given == true for given, true in zip(answers, clean, strict=True)], dtype=torch.bool)


def attacked(answers: list[str], clean: list[str], target: AnswerTarget) -> Bool[Tensor, " eligible"]:
    """Attack success on the samples whose clean answer is eligible. Raises ValueError where they are not as many."""
    pairs = zip(answers, clean, strict=True)
    return torch.tensor([target.achieved(a, c) for a, c in pairs if target.eligible(c)], dtype=torch.bool)


def keyworded(answers: list[str], clean: list[str], target: AnswerTarget) -> Bool[Tensor, " eligible"]:
    """Attack success as DiSP's authors count it: a keyword in the answer, on the samples of `attacked`."""
    pairs = zip(answers, clean, strict=True)
    return torch.tensor([target.keyworded(a) for a, c in pairs if target.eligible(c)], dtype=torch.bool)
