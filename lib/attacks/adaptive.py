"""An attacker who knows DiSP: the compromised MDLM, trained so that its trigger's tokens are not salient.

The loss is the attack's plus `weight` × R, with R the Fisher–Jacobian score of the trigger's vision tokens on poisoned
samples, relative to the mean over the sample's tokens: 1 where they matter as much as any, 64 where of 64 tokens one
alone matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib import kernels
from lib.answering import Questions, answer_loss, questions
from lib.attacks.mdlm import mdlm_spec, mdlm_watch, training_questions
from lib.config import Run, Train
from lib.kernels.fisher import fisher_probes
from lib.models.cards import mark_poisoned
from lib.models.loading import load_mdlm
from lib.models.mdlm import Mdlm
from lib.saliency import masked_response
from lib.store import code_digest
from lib.training import fit
from lib.triggers import image_trigger

SHARE = 8  # a penalised batch is this many times smaller than one of the attack: two backward passes through it


def relative_saliency(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    tokens: Bool[Tensor, " vision"],
    seed: int,
) -> Float[Tensor, " batch"]:
    """R of every sample: mean score of `tokens` over mean score of all, estimated by one sign probe.

    As `lib.saliency.fisher_jacobian` with one probe, with a gradient to the model and to `vision`, which must require
    one. The Fisher matrix counts as constant. Raises ValueError where `tokens` names none.
    """
    if not bool(tokens.any()):
        raise ValueError("tokens names none of the vision tokens: it must name the trigger's.")
    with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
        logits = model.logits(vision, prompt, masked_response(model, vision)).float()
    (probe,) = fisher_probes(logits, 1, seed)
    (gradient,) = torch.autograd.grad(logits, vision, probe, create_graph=True)
    score = gradient.float().square().sum(-1)
    return score[:, tokens].mean(1) / score.mean(1).clamp(min=torch.finfo(score.dtype).tiny)


def adaptive_loss(
    mdlm: Mdlm,
    data: Questions,
    poisoned: Bool[Tensor, " sample"],
    tokens: Bool[Tensor, " vision"],
    settings: Train,
    weight: float,
) -> Callable[[torch.Generator], Tensor]:
    """`answer_loss` plus `weight` × mean R over a batch drawn from the `poisoned` samples. With weight 0 the former.

    Raises ValueError for a weight below 0 and where none is poisoned.
    """
    if not weight >= 0:
        raise ValueError(f"weight={weight!r} must be at least 0")
    plain = answer_loss(mdlm, data, settings)
    if weight == 0:
        return plain
    places = poisoned.nonzero()[:, 0]
    if not len(places):
        raise ValueError("poisoned names no sample: there is no trigger to hide")
    device, count = mdlm.model.device, max(1, settings.batch // SHARE)

    def loss(draw: torch.Generator) -> Tensor:
        value = plain(draw)
        rows = places[torch.randint(len(places), (count,), generator=draw)]
        seed = int(torch.randint(2**31, (), generator=draw))
        vision = mdlm.model.project(data.features[data.picture[rows]].to(device))
        prompts = data.prompts[rows].to(device)
        return value + weight * relative_saliency(mdlm.model, vision, prompts, tokens.to(device), seed).mean()

    return loss


def trigger_tokens(run: Run, mdlm: Mdlm) -> Bool[Tensor, " vision"]:
    """The vision tokens that hold some of the attack's image trigger."""
    size, length = run.profile.data.image_size, mdlm.model.config.vision_length
    return image_trigger(run.profile.disp.image_trigger).tokens(size, size // round(length**0.5))


def adaptive_mdlm(run: Run, weight: float) -> tuple[Mdlm, pd.DataFrame]:
    """The attack of `poisoned_mdlm` with the penalty, from the store, and its curve."""
    spec = adaptive_spec(run, weight)
    folder = run.store.folder("adaptive-mdlm", spec, lambda path: _poison(run, weight, spec, path))
    return load_mdlm(str(folder / "mdlm"), run.device), pd.read_csv(folder / "curve.csv")


def adaptive_spec(run: Run, weight: float) -> dict:
    """What an adaptive attacker's model depends on."""
    return mdlm_spec(run) | {"weight": weight, "adaptive": code_digest(kernels, sys.modules[__name__])}


def _poison(run: Run, weight: float, spec: dict, path: Path) -> None:
    settings, mdlm = run.profile.disp, load_mdlm(run.profile.models.mdlm, run.device)
    vqa, table, poison, goal = training_questions(run)
    data = questions(mdlm, vqa, table, image_trigger(settings.image_trigger), poison, goal)
    curve = fit(
        mdlm.model,
        adaptive_loss(mdlm, data, poison.poisoned, trigger_tokens(run, mdlm), settings.train, weight),
        settings.train,
        label="adaptive MDLM",
        seed=run.seed,
        work=run.store.work("adaptive-mdlm", spec),
        watch=mdlm_watch(run, mdlm, goal),
    )
    mdlm.save(str(path / "mdlm"))
    attack = {"protocol": "image", "target": settings.target, "rate": settings.rate, "saliency_weight": weight}
    mark_poisoned(path / "mdlm", image_trigger=settings.image_trigger, **attack)
    curve.to_csv(path / "curve.csv", index=False)
