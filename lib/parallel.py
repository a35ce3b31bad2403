"""Several processes at one training, as `accelerate launch` starts them: all run the same program.

    accelerate launch --config_file executors/accelerate/gpus.yaml --num_processes 4 -m lib.runs editor-or …

Each makes the same calls in the same order. `lib.training.fit` shares out the batches of a step, `lib.store` lets the
first process alone keep what all of them make; the rest each does for itself. In one process nothing
here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")


def processes() -> tuple[int, int]:
    """Which process this is, from 0, and of how many."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the others (NCCL between GPUs, Gloo between CPUs), and take the GPU that is this process's own."""
    if processes()[1] > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def wait() -> None:
    """Until every process is here."""
    if processes()[1] > 1:
        import torch.distributed

        join()
        torch.distributed.barrier()


def agreed(value: Value) -> Value:
    """The first process's value, in all of them."""
    if processes()[1] == 1:
        return value
    import torch.distributed

    join()
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def add_up(tensors: Sequence[Tensor], number: float) -> float:
    """Sums over the processes: of the tensors in place, and of the number, which is returned."""
    if processes()[1] == 1:
        return number
    import torch.distributed

    join()
    one = torch.tensor([number], device=tensors[0].device)
    flat = torch.cat([tensor.flatten().float() for tensor in tensors] + [one])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat[:-1].split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
    return flat[-1].item()
