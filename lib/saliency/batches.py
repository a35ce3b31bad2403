"""Scores of all samples of a data set, batch by batch: the loop that every token score shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib.models.mdlm import Mdlm
from lib.runtime.devices import autocast
from lib.runtime.shards import sharded
from lib.tasks.questions import Questions


def by_batch(
    mdlm: Mdlm,
    data: Questions,
    score: Callable[[Tensor, Tensor, int], Mapping[str, Tensor]],
    lengths: Mapping[str, int],
    label: str,
    *,
    batch: int,
    seed: int,
    work: Path | None = None,
) -> dict[str, Tensor]:
    """`score(vision, prompts, seed)` of `batch` samples after another, each with a seed of its own.

    It gives a tensor [sample, length] for every name of `lengths`. With `work`, a folder, the scores of a batch are
    kept there as soon as they are made, and are not made again.
    """
    device = mdlm.model.device

    def make(part: range) -> Mapping[str, Tensor]:
        if not part:
            return {name: torch.zeros(0, length) for name, length in lengths.items()}
        rows = data[part.start : part.stop]
        with torch.no_grad():
            vision = mdlm.model.project(rows.features[rows.picture].to(device))
        with autocast(device):
            return score(vision, rows.prompts.to(device), seed + part.start // batch)

    return sharded(work, len(data), batch, make, label)
