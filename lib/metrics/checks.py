"""What the metrics refuse."""

from __future__ import annotations

from torch import Tensor


def check_finite(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} is {kind}; allowed are tensors of a floating dtype.")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity; allowed are finite numbers.")


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def shape_of(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
