"""The progress of a training: weights, optimizer states and curve in one file, which is whole or not used.

Its digest is in the file's metadata: of a file that is cut, damaged or changed nothing is taken.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from lib.runtime.processes import rank
from lib.runtime.sharding import like, whole
from lib.runtime.store import write_atomic

FILE = "progress.safetensors"


def save(
    work: Path, step: int, parameters: Mapping[str, Tensor], optimizer, scaler, rows: list, recent: list
) -> None:
    """Write what `resume` reads after `step` steps; all processes must call it, the first one writes.

    rows: the curve so far; recent: losses since its last row; scaler: of gradients in float16, or None.
    """
    tensors = {f"parameter/{n}": whole(p.detach()) for n, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = whole(value)
    if rank():
        return
    facts = {"step": str(step), "rows": json.dumps(rows), "recent": json.dumps(recent)}
    if scaler:
        facts["scaler"] = json.dumps(scaler.state_dict())
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(work / FILE, serialize(tensors, facts | {"sha256": _digest(tensors, facts)}))


def resume(work: Path, parameters: Mapping[str, Tensor], optimizer, scaler) -> tuple[int, list, list]:
    """Load the last saved progress in place: its step, rows and recent losses.

    (0, [], []) where there is none, and, with a warning, where it is not what was written.
    """
    file = work / FILE
    if not file.exists():
        return 0, [], []
    kept = _read(file)
    if kept is None:
        warnings.warn(f"{file} is damaged; this training begins again at its first step.", stacklevel=2)
        return 0, [], []
    tensors, facts = kept
    for name, parameter in parameters.items():
        parameter.detach().copy_(like(tensors[f"parameter/{name}"], parameter))
        state = [key.removesuffix(f"/{name}") for key in tensors if key.endswith(f"/{name}")]
        optimizer.state[parameter] = {
            key: tensors[f"{key}/{name}"] if key == "step" else like(tensors[f"{key}/{name}"], parameter)
            for key in state
            if key != "parameter"
        }
    if scaler:
        scaler.load_state_dict(json.loads(facts["scaler"]))
    return int(facts["step"]), json.loads(facts["rows"]), json.loads(facts["recent"])


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and facts of the file; None where they are not what was written."""
    try:
        with safe_open(file, "pt") as saved:
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118, it is no mapping
            facts = dict(saved.metadata() or {})
    except (OSError, SafetensorError):
        return None
    return (tensors, facts) if facts.pop("sha256", None) == _digest(tensors, facts) else None


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """SHA-256 of the facts and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
