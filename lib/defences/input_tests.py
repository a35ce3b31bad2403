"""Defences as questions are asked: hide the vision tokens that draw attention to them, or refuse the question."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lib.defences.interface import CLEAN_DATA, Defended, Defender
from lib.models.mdlm import Mdlm
from lib.runtime.devices import autocast
from lib.runtime.seeds import generator
from lib.saliency.by_name import layer_attention
from lib.saliency.masking import masked_response
from lib.tasks.questions import Questions

OUTLIER = 3.5  # modified z-score, Iglewicz and Hoaglin (1993)
# Chosen before any defence was measured.
OVERLAYS = 10  # clean pictures that STRIP blends each input with: enough for a mean, at ten forward passes an input
FALSE_POSITIVES = 0.01  # of clean inputs, which thresholds on the clean share allow, as STRIP presets them


def prune_attention(defender: Defender) -> Defended:
    """Hide, in every picture, the vision tokens whose attention received is an outlier among the picture's own."""
    mdlm = defender.suspect()
    return Defended(mdlm, mask=lambda data: outliers(layer_attention(mdlm, data, defender.batch).mean(0)))


def strip(defender: Defender) -> Defended:
    """STRIP-like (Gao et al. 2019, arXiv 1902.06531): refuse what is answered surely whatever it is blended with.

    Refused is an input whose `blended_entropy` is below all but `FALSE_POSITIVES` of the clean share's.
    """
    mdlm = defender.suspect()
    clean = defender.clean_share(mdlm)

    def score(data: Questions) -> Float[Tensor, " sample"]:
        return blended_entropy(mdlm, data, clean, OVERLAYS, defender.seed, defender.batch)

    lowest = score(clean).quantile(FALSE_POSITIVES)
    return Defended(mdlm, CLEAN_DATA, flag=lambda data: score(data) < lowest)


@torch.no_grad()
def blended_entropy(
    mdlm: Mdlm, data: Questions, overlays: Questions, copies: int, seed: int, batch: int
) -> Float[Tensor, " sample"]:
    """STRIP's score: mean over `copies` of the entropy (nats, summed over the response) of the first step's tokens.

    Each copy is the picture blended half and half with a random one of `overlays`. STRIP adds pixels and classifies;
    here the frozen tower's features are blended, and the response is a sequence.
    """
    model, parts = mdlm.model, [torch.zeros(0, dtype=torch.float64)]
    chosen = torch.randint(len(overlays), (len(data), copies), generator=generator(seed, "overlays"))
    for part in tqdm(torch.arange(len(data)).split(batch), desc="blends", unit="batch", leave=False):
        features, prompts = data.features[data.picture[part]], data.prompts[part].to(model.device)
        total = torch.zeros(len(part), dtype=torch.float64)
        for other in chosen[part].unbind(1):
            mixed = (features + overlays.features[overlays.picture[other]]) / 2
            with autocast(model.device):
                vision = model.project(mixed.to(model.device))
                logits = model.logits(vision, prompts, masked_response(model, vision))
            log_p = F.log_softmax(logits.double(), -1)
            total -= (log_p.exp() * log_p).sum((1, 2)).cpu()
        parts.append(total / copies)
    return torch.cat(parts)


def outliers(scores: Float[Tensor, "sample token"]) -> Bool[Tensor, "sample token"]:
    """Tokens far above the others of their sample: 0.6745 (x − median) / MAD above `OUTLIER`.

    Where more than half of a sample's tokens are equal, MAD = 0 and all above them are outliers.
    """
    middle = scores.double().quantile(0.5, dim=1, keepdim=True)
    away = scores.double() - middle
    spread = away.abs().quantile(0.5, dim=1, keepdim=True)
    return 0.6745 * away > OUTLIER * spread
