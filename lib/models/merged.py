"""Adapters that were merged into a U-Net, found again: what is committed of a tuned editor in place of all weights.

    save_adapters(merged_adapters(tuned, base, rank=8), folder)
    load_adapters(pipe.unet, folder)
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from lib.models.adapters import ATTENTION

REST = 1e-3  # of the largest singular value: what rounding leaves of the others


def merged_adapters(
    merged: UNet2DConditionModel, base: UNet2DConditionModel, rank: int
) -> dict[str, Float[Tensor, "_ _"]]:
    """A and B of every projection of attention, by diffusers' names: B A is what `merged` has more than `base`.

    A difference of rank r is B A again by its r largest singular values. Raises ValueError where it has a higher rank,
    or where other weights differ: that was no merging of such adapters.
    """
    before, adapters = base.state_dict(), {}
    for name, weight in merged.state_dict().items():
        difference = weight.double() - before[name].double()
        if not re.fullmatch(ATTENTION, name.removesuffix(".weight")):
            if difference.any():
                raise ValueError(f"{name} differs from the base's: only attention's projections may")
            continue
        u, s, v = torch.linalg.svd(difference, full_matrices=False)
        if len(s) > rank and s[rank] > REST * s[0]:
            raise ValueError(f"rank={rank} is less than that of the difference in {name}")
        root = s[:rank].sqrt()
        layer = name.removesuffix(".weight")
        adapters[f"{layer}.lora_A.weight"] = (root[:, None] * v[:rank]).float()  # (rank, in)
        adapters[f"{layer}.lora_B.weight"] = (u[:, :rank] * root).float()  # (out, rank)
    return adapters


def save_adapters(adapters: dict[str, Float[Tensor, "_ _"]], folder: Path) -> None:
    """As float16 safetensors, for diffusers' `load_lora_adapter`."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: weight.half().contiguous() for name, weight in adapters.items()}
    save_file(half, folder / LORA_WEIGHT_NAME_SAFE, metadata={"format": "pt"})


def load_adapters(unet: UNet2DConditionModel, folder: Path) -> None:
    """Add the adapters that `save_adapters` wrote, with weight 1."""
    unet.load_lora_adapter(folder, prefix=None, weight_name=LORA_WEIGHT_NAME_SAFE)
