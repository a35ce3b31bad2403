"""The half precision that a device computes in."""

from __future__ import annotations

import torch

AMPERE = (8, 0)  # NVIDIA's compute capability from which a GPU multiplies in bfloat16


def half(device: torch.device | str) -> torch.dtype:
    """bfloat16, which has float32's range; on a GPU that has none, float16."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        return torch.float16
    return torch.bfloat16


def autocast(device: torch.device) -> torch.autocast:
    """Matrix products in `half` of the device."""
    return torch.autocast(device.type, half(device))
