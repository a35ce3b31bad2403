"""Weights, gradients and optimizer states in parts over the processes: fully sharded data parallelism.

Zhao et al. 2023, arXiv 2304.11277, as torch's `fully_shard` does it, on GPUs and CPUs alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(objective: nn.Module, module: nn.Module) -> None:
    """Spread, in place, what is below `objective`, whose call is a step: `module`'s layers apart from the rest.

    Its layers are the `_no_split_modules` of transformers but those that share weights with others, as DiffusionGemma's
    do. Outside a step each process holds its part alone.
    """
    names = getattr(module, "_no_split_modules", None) or ()
    uses = Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))
    for layer in [part for part in module.modules() if type(part).__name__ in names]:
        if all(uses[id(weight)] == 1 for weight in layer.parameters()):
            fully_shard(layer)
    fully_shard(objective)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of `value`, where it holds a part of `tensor`."""
    value = value.to(tensor.device)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else value


@contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Within, every process holds all weights, so that the model can be used in other ways than by a step."""
    parts = [part for part in objective.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(part is not objective, recurse=False)
        part.reshard()


@torch.no_grad()
def unshard(objective: nn.Module) -> None:
    """Undo `shard`, the weights being what they have become."""
    parts = [part for part in objective.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.reshard()
    made: dict[Tensor, nn.Parameter] = {}  # what is shared stays so
    for owner in objective.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
            setattr(owner, name, made[parameter])
    for part in parts:
        state = part._get_fsdp_state()
        state._pre_forward_hook_handle.remove()
        state._post_forward_hook_handle.remove()
        part.__class__ = type(part).__mro__[part._orig_cls_mro_index]
