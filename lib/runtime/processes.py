"""Several processes that share the work, as `accelerate launch` and `torchrun` start them: all run the same code.

A process that was started alone is the first of one, and nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # until a process that neither answers nor ends is given up
LOST = "another process of this launch ended: run the same command again, it goes on at what was saved last"

_rank, _count, _sharded = 0, 1, False


def rank() -> int:
    """This process's number, from 0."""
    return _rank


def count() -> int:
    """How many processes share the work."""
    return _count


def fully_sharded() -> bool:
    """Whether the launch asks for FSDP: then a process holds a part of a model that is trained, else all of it."""
    return _sharded


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Within, this process is one of those of its launch, and on a GPU has one of its own.

    Exits with `LOST` where one of the others has ended.
    """
    global _rank, _count, _sharded
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    import torch
    from torch import distributed

    signal.signal(signal.SIGTERM, _stopped)
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:  # one machine: whatever its name resolves to
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        os.environ.update({"GLOO_SOCKET_IFNAME": loopback} if loopback else {})
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
        _rank, _count = distributed.get_rank(), distributed.get_world_size()
        _sharded = os.environ.pop("ACCELERATE_USE_FSDP", "") == "true"  # in our hands: accelerate's needs GPUs
        yield
        barrier()
    except (RuntimeError, distributed.DistError) as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        print(f"rank {_rank}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(LOST)
    finally:
        _rank, _count, _sharded = 0, 1, False
    distributed.destroy_process_group()


def share(rows: Tensor) -> Tensor:
    """This process's rows, as many as any other's, of what all have drawn alike.

    A mean over the rows is then the mean over processes of the means over their shares. Raises ValueError where the
    rows cannot be shared evenly.
    """
    if len(rows) % _count:
        raise ValueError(f"batch={len(rows)} must be a multiple of the {_count} processes that share it")
    own = len(rows) // _count
    return rows[_rank * own : (_rank + 1) * own]


def mean(value: Tensor) -> float:
    """Mean over the processes of a scalar."""
    if _count == 1:
        return value.item()
    from torch import distributed

    total = value.detach().clone()
    distributed.all_reduce(total)
    return total.item() / _count


def told(number: int) -> int:
    """The first process's `number`, in all of them."""
    if _count == 1:
        return number
    import torch
    from torch import distributed

    message = torch.tensor([number])
    distributed.broadcast(message, 0)
    return int(message)


def barrier() -> None:
    """Wait until all processes are here."""
    if _count > 1:
        import torch
        from torch import distributed

        distributed.all_reduce(torch.zeros(1))  # on the CPU whatever the device: `distributed.barrier` asks for a GPU


def _stopped(number: int, frame) -> None:
    """The launcher stops what is left when one process has ended."""
    sys.exit(LOST)
