"""Which tokens are masked, and what the scores of them are asked about."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.kernels import describe
from lib.runtime.seeds import generator

VARIANTS = 128  # pictures with one token changed that go through a model at once


def random_scores(batch: int, tokens: int, seed: int) -> Float[Tensor, "batch vision"]:
    """Uniform scores: the baseline that masks tokens without looking."""
    return torch.rand(batch, tokens, generator=generator(seed, "random scores"))


def mask_top(scores: Float[Tensor, "batch vision"], ratio: float) -> Bool[Tensor, "batch vision"]:
    """The ⌊ratio × tokens⌋ highest scores of each row (arXiv 2602.22246); the earlier token on ties.

    Raises ValueError for a ratio outside [0, 1].
    """
    count = masked_count(ratio, scores.shape[1])
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :count], True)


def masked_count(ratio: float, tokens: int) -> int:
    """⌊ratio × tokens⌋ of the ratio as it is written: ⌊0.29 × 100⌋ = 29. Raises ValueError for one outside [0, 1]."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio!r} must be in [0, 1]")
    return math.floor(round(ratio * tokens, 9))


def masked_response(model, vision: Float[Tensor, "batch vision dim"]) -> Int[Tensor, "batch response"]:
    """The first step's response: nothing but mask tokens."""
    return torch.full((len(vision), model.config.response_length), model.config.mask_id, device=vision.device)


def check_inputs(vision: Tensor, prompt: Tensor) -> None:
    """Raises ValueError unless they are floating [batch, vision, dim] without NaN, and integers [batch, prompt]."""
    if not isinstance(vision, Tensor) or vision.ndim != 3 or not vision.is_floating_point():
        raise ValueError(f"vision must be floating [batch, vision, dim], not {describe(vision)}")
    integers = isinstance(prompt, Tensor) and not prompt.is_floating_point() and prompt.dtype != torch.bool
    if not integers or prompt.ndim != 2:
        raise ValueError(f"prompt must be integers [batch, prompt], not {describe(prompt)}")
    if len(prompt) != len(vision):
        raise ValueError(f"prompt has {len(prompt)} rows for {len(vision)} of vision: they must be equal")
    if bool(vision.isnan().any()):
        raise ValueError("vision holds NaN")


def check_probes(probes: int) -> None:
    """Raises ValueError unless it is an integer of at least 1."""
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes={probes!r} must be an integer of at least 1")
