"""How probable a response is to an MDLM, by LLaDA's Monte Carlo estimate over masks (Nie et al. 2025, eq. 6)."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.models.mdlm import Mdlm
from lib.runtime.seeds import generator
from lib.runtime.shards import sharded
from lib.tasks.questions import Questions, together


def likelihood_masks(count: int, masks: int, length: int, seed: int) -> Bool[Tensor, "count masks length"]:
    """Which tokens are masked: for each of `count` samples, `masks` sets of 1 to `length` of its tokens.

    As in LLaDA's code the sets' sizes are spread evenly over 1 … `length` from a random first one, so that each size is
    equally likely; with `masks` = `length` each comes once. The tokens of a set are drawn without replacement.
    """
    draw = generator(seed, "likelihood masks")
    first = torch.randint(length, (count, 1), generator=draw)
    sizes = (first + torch.arange(masks) * length // masks) % length + 1
    return torch.rand(count, masks, length, generator=draw).argsort(-1) < sizes[..., None]


@torch.no_grad()
def mean_log_probability(
    mdlm: Mdlm,
    data: Questions,
    masked: Bool[Tensor, "sample masks response"],
    label: str,
    batch: int | None = None,
    work: Path | None = None,
) -> Float[Tensor, " sample"]:
    """log p(response | picture, question) / L of every sample by LLaDA's likelihood estimate, in nats a token.

        log p(r) / L ≈ mean over the masks of [ 1/l Σ_masked log p(r_i | the tokens not masked) ]

    with l of the L tokens masked (Nie et al. 2025, eq. 6). Over all masks that is the mean over all orders in which the
    response can be filled token by token; over `likelihood_masks` an unbiased estimate of it. The end tokens behind the
    answer count, as they do in training: they are what tells "blue" from "blue, remember …". `masked` names the masks,
    each of at least one token; responses that are to be compared take the same ones. `batch` samples with all their
    masks go through the model at once: 16, and of larger pictures as many as are answered together. Computed in
    float32. With `work`, a folder, batches are kept there, see `lib.runtime.shards`.

    As the fill counts, the number depends on how long responses are. Raises ValueError where `mdlm.fill` is "absent":
    such a model has never learnt those tokens.
    """
    if mdlm.fill != "learnt":
        raise ValueError(f"fill={mdlm.fill!r} must be 'learnt': the likelihood of a response is also its fill's")
    batch = batch or min(16, max(1, together(mdlm) // masked.shape[1]))
    device, mask_id = mdlm.model.device, mdlm.model.config.mask_id

    def make(part: range) -> dict[str, Tensor]:
        if not part:
            return {"mean": torch.zeros(0)}
        rows, times = slice(part.start, part.stop), masked.shape[1]
        hidden = masked[rows].to(device)
        vision = mdlm.model.project(data.features[data.picture[rows]].to(device)).repeat_interleave(times, 0)
        prompts = data.prompts[rows].to(device).repeat_interleave(times, 0)
        true = data.responses[rows].to(device)[:, None].expand_as(hidden)
        logits = mdlm.model.logits(vision, prompts, torch.where(hidden, mask_id, true).flatten(0, 1)).float()
        found = logits.log_softmax(-1).gather(-1, true.flatten(0, 1)[..., None]).view(hidden.shape)
        return {"mean": ((found * hidden).sum(-1) / hidden.sum(-1)).mean(-1)}

    return sharded(work, len(data), batch, make, label)["mean"]
