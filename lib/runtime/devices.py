"""Devices, the half precision they compute in, and activations that a backward pass computes again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

AMPERE = (8, 0)  # NVIDIA's compute capability from which a GPU multiplies in bfloat16


def resolve_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, `mps` or `auto` (a GPU when there is one) as a device that is there."""
    if not isinstance(name, str):
        raise ValueError(f"device={name!r} must be a string such as 'cpu', 'cuda' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device={name!r} is not a device: use 'cpu', 'cuda', 'cuda:<n>', 'mps' or 'auto'"
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ValueError(f"device={name!r} is not on this machine: use 'cpu' or 'auto'")
    return device


def half(device: torch.device | str) -> torch.dtype:
    """bfloat16, which has float32's range; on a GPU that has none, float16."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        return torch.float16
    return torch.bfloat16


def autocast(device: torch.device) -> torch.autocast:
    """Matrix products in `half` of the device."""
    return torch.autocast(device.type, half(device))


@contextmanager
def recomputed(model) -> Iterator[bool]:
    """Within, a published model keeps each layer's input alone and is in training mode; yields whether it is so.

    Our own MDLM, and whatever else does not support it, is left as it is.
    """
    supported = getattr(model, "supports_gradient_checkpointing", False)
    if not supported:
        yield False
        return
    training = model.training
    model.train()  # transformers' layers compute again in training mode alone
    model.activation_checkpointing_enable()
    try:
        yield True
    finally:
        model.activation_checkpointing_disable()
        model.train(training)
