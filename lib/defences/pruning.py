"""Fine-pruning (Liu et al. 2018, arXiv 1805.12185): remove units that clean data leave silent, then fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.defences.interface import CLEAN_DATA, Defended, Defender
from lib.models.mdlm import Mdlm, blocks_of
from lib.saliency.masking import mask_top
from lib.tasks.questions import Questions, respond

PRUNED = 0.2  # of each block's hidden MLP units; chosen before any defence was measured


def fine_prune(defender: Defender) -> Defended:
    """Prune by activity on the clean share, and fine-tune on it.

    The units are those of the blocks' MLPs, `PRUNED` of each: where Liu et al. prune the last convolution until
    accuracy falls, the share here is fixed beforehand. The pruned stay so in fine-tuning, see `prune`.
    """

    def begin() -> tuple[Mdlm, Questions]:
        mdlm = defender.suspect()
        data = defender.clean_share(mdlm)
        prune(mdlm, activity(mdlm, data, defender.threshold), PRUNED)
        return mdlm, data

    return Defended(defender.trained("fine-pruned", defender.purify, begin), CLEAN_DATA)


def activity(mdlm: Mdlm, data: Questions, threshold: float) -> Float[Tensor, "block unit"]:
    """Mean magnitude of each hidden unit of the blocks' MLPs while the model answers."""
    blocks = blocks_of(mdlm.model)
    sums = [torch.zeros(block.mlp[0].out_features, dtype=torch.float64) for block in blocks]
    counts = [0] * len(sums)

    def add(k: int) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            hidden = output.flatten(0, -2).abs()
            sums[k] += hidden.double().sum(0).cpu()
            counts[k] += len(hidden)

        return hook

    with _hooked((block.mlp[1], add(k)) for k, block in enumerate(blocks)):
        respond(mdlm, data, threshold, label="activity")
    return torch.stack([total / count for total, count in zip(sums, counts, strict=True)])


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def prune(mdlm: Mdlm, active: Float[Tensor, "block unit"], share: float) -> None:
    """Set to zero, in place, what goes into and out of the `share` of each block's MLP units that is least active.

    Such a unit's gradients are zero (GELU(0) = 0), and so is its weight decay: fine-tuning does not bring it back.
    """
    for block, dead in zip(blocks_of(mdlm.model), mask_top(-active, share), strict=True):
        block.mlp[0].weight[dead] = 0
        block.mlp[0].bias[dead] = 0
        block.mlp[2].weight[:, dead] = 0
