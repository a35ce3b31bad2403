"""What is computed sample by sample over hours, kept part by part: a kill loses the part that was being made."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor
from tqdm.auto import tqdm

from lib.runtime.processes import barrier, count, rank
from lib.runtime.store import write_atomic


def sharded(
    work: Path | None, samples: int, size: int, make: Callable[[range], Mapping[str, Tensor]], label: str
) -> dict[str, Tensor]:
    """`make(part)` of every `size` of `samples`, put together by name along the first dimension, on the CPU.

    `make` gives one tensor [sample, …] per name, which depends on nothing but the part. With `work`, a folder such as
    `Store.work` gives, each part is written there as soon as it is made and is not made again; one that is damaged is,
    with a warning. The processes of a launch make the parts in turn, in a `work` that all of them see. No samples:
    `make(range(0))` gives the shapes. `label` names the progress bar. Raises ValueError for a tensor that has not one
    row per sample.
    """
    parts = [range(start, min(start + size, samples)) for start in range(0, samples, size)] or [range(0)]
    if work and count() > 1:
        for part in tqdm(parts[rank() :: count()], desc=label, unit="batch", leave=False, disable=rank() > 0):
            _part(work, part, make)
        barrier()
    bar = tqdm(parts, desc=label, unit="batch", leave=False, disable=rank() > 0)
    rows = [_part(work, part, make) for part in bar]
    return {name: torch.cat([tensors[name] for tensors in rows]) for name in rows[0]}


def _part(work: Path | None, part: range, make: Callable[[range], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One part, from `work` where it is there."""
    file = work and work / f"{part.start}-{part.stop}.safetensors"
    tensors = _kept(file) if file else None
    if tensors is None:
        tensors = _made(part, make)
        if file:
            write_atomic(file, serialize(tensors, {"sha256": _digest(tensors)}))
    return tensors


def _made(part: range, make: Callable[[range], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in make(part).items()}
    for name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) != len(part):
            raise ValueError(f"{name} is {list(tensor.shape)} for {len(part)} samples: it must have a row for each")
    return tensors


def _kept(file: Path) -> dict[str, Tensor] | None:
    """The part in `file`; None where there is none, or not what was written."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as saved:
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118, it is no mapping
            if saved.metadata()["sha256"] == _digest(tensors):
                return tensors
    except (SafetensorError, KeyError, TypeError):
        pass
    warnings.warn(f"{file} is damaged; it is made again.", stacklevel=3)
    return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(serialize(dict(tensors))).hexdigest()
