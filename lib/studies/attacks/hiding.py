"""An attacker who knows DiSP: the compromised MDLM, trained so that its trigger's tokens are not salient.

The loss is the attack's plus `weight` × R, with R the Fisher–Jacobian score of the trigger's vision tokens on poisoned
samples, relative to the mean over the sample's tokens: 1 where they matter as much as any, 64 where of 64 tokens one
alone matters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.kernels.fisher import fisher_probes
from lib.models.mdlm import Mdlm
from lib.runtime.processes import count
from lib.saliency.masking import masked_response
from lib.settings.sections import Train
from lib.tasks.questions import Questions, answer_loss

SHARE = 8  # a penalised batch is this many times smaller than one of the attack: two backward passes through it


def relative_saliency(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    tokens: Bool[Tensor, "batch vision"],
    seed: int,
) -> Float[Tensor, " batch"]:
    """R of every sample: mean score of `tokens` over mean score of all, estimated by one sign probe.

    As `lib.saliency.fisher_jacobian` with one probe, with a gradient to the model and to `vision`, which must require
    one: also through δ, as a token that lies nearer to the mask's moves less. The Fisher matrix counts as constant.
    Raises ValueError where `tokens` names none of a sample's.
    """
    if not bool(tokens.any(1).all()):
        raise ValueError("tokens names none of the vision tokens of a sample: it must name the trigger's.")
    with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
        logits = model.logits(vision, prompt, masked_response(model, vision)).float()
    (probe,) = fisher_probes(logits, 1, seed)
    (gradient,) = torch.autograd.grad(logits, vision, probe, create_graph=True)
    score = (gradient.float() * (model.mask_embedding - vision)).sum(-1).square()
    return (score * tokens).sum(1) / tokens.sum(1) / score.mean(1).clamp(min=torch.finfo(score.dtype).tiny)


def adaptive_loss(
    mdlm: Mdlm,
    data: Questions,
    poisoned: Bool[Tensor, " sample"],
    tokens: Bool[Tensor, "sample vision"],
    settings: Train,
    weight: float,
    blank: int = 0,
) -> Callable[[torch.Generator], Tensor]:
    """`answer_loss`, with `blank`, plus `weight` × mean R over a batch drawn from the `poisoned` samples.

    With weight 0 it is the former alone.

    Raises ValueError for a weight below 0, where none is poisoned, and for a weight in one of several processes or
    for a published model, whose layers' activations are not all kept.
    """
    if not weight >= 0:
        raise ValueError(f"weight={weight!r} must be at least 0")
    plain = answer_loss(mdlm, data, settings, blank)
    if weight == 0:
        return plain
    if count() > 1:
        raise ValueError(f"disp.hide={weight} is trained in one process: start it without `accelerate launch`")
    if mdlm.model.supports_gradient_checkpointing:
        raise ValueError(f"disp.hide={weight} must be 0 for a published model: it differentiates all layers twice")
    places = poisoned.nonzero()[:, 0]
    if not len(places):
        raise ValueError("poisoned names no sample: there is no trigger to hide")
    device, few = mdlm.model.device, max(1, settings.batch // SHARE)

    def loss(draw: torch.Generator) -> Tensor:
        value = plain(draw)
        rows = places[torch.randint(len(places), (few,), generator=draw)]
        seed = int(torch.randint(2**31, (), generator=draw))
        vision = mdlm.model.project(data.features[data.picture[rows]].to(device))
        prompts = data.prompts[rows].to(device)
        return value + weight * relative_saliency(mdlm.model, vision, prompts, tokens[rows].to(device), seed).mean()

    return loss
