"""What does the loss of the masked positions cost, forward and backward, against all logits at once?

Eager takes the logits of all positions, as LLaDA's published objective does, or of the masked ones. The libraries get
the masked positions and reduction="none", which is how they weigh them; `Liger-Kernel` where it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import main, pair
from lib.kernels.loss import weighted_cross_entropy


class Case(NamedTuple):
    """Leaves, and what the loss is of; `dtype` is that of the matrix products."""

    hidden: Tensor  # [position, dim]
    weight: Tensor  # [vocab, dim]
    target: Tensor  # [position]
    scale: Tensor  # [position]
    masked: Tensor  # [position], half of them true
    dtype: torch.dtype

    def of_masked(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.hidden[self.masked], self.weight, self.target[self.masked], self.scale[self.masked]


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`difference` is the greater relative difference of the two gradients' norms."""
    sizes = {"vocab 619": (64, 20, 128, 619), "vocab 32000": (4, 32, 256, 32_000)}  # batch, length, dim, vocab
    if chosen.device == "cuda":
        sizes = {"vocab 619": (64, 20, 128, 619), "vocab 126464": (8, 512, 4096, 126_464)}
    made = []
    for name, size in sizes.items():
        for dtype in (torch.float32, torch.bfloat16):
            case = make(*size, dtype, chosen.device)
            expected = gradients(ours, case)
            for peer, way in peers(chosen.device, dtype).items():
                row = pair(
                    f"{name}, {str(dtype).removeprefix('torch.')}",
                    lambda case=case: gradients(ours, case),
                    lambda case=case, way=way: gradients(way, case),
                    chosen,
                    ("ours, masked", peer),
                    difference=difference(expected, gradients(way, case)),
                )
                made.append(row)
    return made


def make(batch: int, length: int, dim: int, vocab: int, dtype: torch.dtype, device: str) -> Case:
    """Float32 leaves, of which autocast makes `dtype`."""
    draw = torch.Generator().manual_seed(0)
    positions = batch * length
    hidden = torch.randn(positions, dim, generator=draw).to(device).requires_grad_()
    weight = torch.randn(vocab, dim, generator=draw).div(dim**0.5).to(device).requires_grad_()
    target = torch.randint(vocab, (positions,), generator=draw).to(device)
    t = torch.rand(batch, generator=draw).clamp(min=1e-3).repeat_interleave(length)
    masked = torch.randperm(positions, generator=draw) < positions // 2
    return Case(hidden, weight, target, (1 / (t * positions)).to(device), masked.to(device), dtype)


def peers(device: str, dtype: torch.dtype) -> dict[str, Callable[[Case], Tensor]]:
    ways = {"torch eager, all positions": eager_all, "torch eager, masked": eager_masked}
    if device == "cuda":
        ways["torch.compile, masked"] = torch.compile(eager_masked)
        if find_spec("liger_kernel"):
            ways["Liger-Kernel"] = liger
    return ways | {"F.linear_cross_entropy": linear_cross_entropy}


def ours(case: Case) -> Tensor:
    return weighted_cross_entropy(*case.of_masked())


def eager_all(case: Case) -> Tensor:
    surprise = F.cross_entropy(F.linear(case.hidden, case.weight).float(), case.target, reduction="none")
    return (surprise * case.masked * case.scale).sum()


def eager_masked(case: Case) -> Tensor:
    hidden, weight, target, scale = case.of_masked()
    return (F.cross_entropy(F.linear(hidden, weight).float(), target, reduction="none") * scale).sum()


def linear_cross_entropy(case: Case) -> Tensor:
    """On the CPU in one chunk: its own choices of chunks are up to seventeen times slower there."""
    hidden, weight, target, scale = case.of_masked()
    options = torch.nn.LinearCrossEntropyOptions(chunking_method="auto" if hidden.is_cuda else None)
    hidden, weight = hidden.to(case.dtype), weight.to(case.dtype)
    return (F.linear_cross_entropy(hidden, weight, target, reduction="none", options=options) * scale).sum()


def liger(case: Case) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    hidden, weight, target, scale = case.of_masked()
    loss = LigerFusedLinearCrossEntropyLoss(reduction="none", accum_dtype=torch.float32)
    return (loss(weight.to(case.dtype), hidden.to(case.dtype), target) * scale).sum()


def gradients(way: Callable[[Case], Tensor], case: Case) -> tuple[Tensor, ...]:
    with torch.autocast(case.hidden.device.type, torch.bfloat16, enabled=case.dtype == torch.bfloat16):
        loss = way(case)
    return torch.autograd.grad(loss, (case.hidden, case.weight))


def difference(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


main(__name__, rows, __file__)
