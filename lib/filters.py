"""Scores of how suspicious a sample or a vision token is to a compromised MDLM, and rules that set apart by a score."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lib.answering import Questions
from lib.config import generator
from lib.models.mdlm import Mdlm
from lib.precision import autocast
from lib.saliency import masked_response
from lib.saliency_rivals import attention_by_layer

SEPARATION = 2.0  # |μ₁ − μ₂| / (σ₁ + σ₂) above which BYE's authors' code calls a layer bimodal
OUTLIER = 3.5  # modified z-score, Iglewicz and Hoaglin (1993)


@torch.no_grad()
def attention(mdlm: Mdlm, data: Questions, batch: int) -> Float[Tensor, "layer sample vision"]:
    """`attention_by_layer` of all samples."""
    model, parts = mdlm.model, []
    for part in tqdm(torch.arange(len(data)).split(batch), desc="attention", unit="batch", leave=False):
        vision = model.project(data.features[data.picture[part]].to(model.device))
        parts.append(attention_by_layer(model, vision, data.prompts[part].to(model.device)).cpu())
    return torch.cat(parts, 1)


def vision_ratio(received: Float[Tensor, "layer sample vision"]) -> Float[Tensor, " sample"]:
    """Attention to all vision tokens over that to everything else, mean over layers."""
    share = received.double().sum(2).mean(0)
    return share / (1 - share)


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
        own, prompts = data.features[data.picture[part]], data.prompts[part].to(model.device)
        total = torch.zeros(len(part), dtype=torch.float64)
        for other in chosen[part].unbind(1):
            mixed = (own + overlays.features[overlays.picture[other]]) / 2
            with autocast(model.device):
                vision = model.project(mixed.to(model.device))
                logits = model.logits(vision, prompts, masked_response(model, vision))
            log_p = F.log_softmax(logits.double(), -1)
            total -= (log_p.exp() * log_p).sum((1, 2)).cpu()
        parts.append(total / copies)
    return torch.cat(parts)


def entropy(weights: Float[Tensor, "*sample token"]) -> Float[Tensor, "*sample"]:
    """Shannon entropy in nats of non-negative weights, scaled to sum to one."""
    share = weights.double() / weights.double().sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1)


def low_entropy_cluster(entropies: Float[Tensor, "layer sample"]) -> Bool[Tensor, " sample"]:
    """BYE's suspicious samples: of the mean entropy over sensitive layers, the lower of two Gaussian components.

    A layer is sensitive where its `separation` is above `SEPARATION` (arXiv 2505.16916 and its authors' code). Without
    such a layer there is nothing to tell samples apart by, and none is suspicious.
    """
    sensitive = [layer for layer in entropies if separation(layer) > SEPARATION]
    if not sensitive:
        return torch.zeros(entropies.shape[1], dtype=torch.bool)
    score = torch.stack(sensitive).mean(0)
    mixture = _mixture(score)
    return torch.from_numpy(mixture.predict(_column(score)) == mixture.means_.argmin())


def higher_half(entropies: Float[Tensor, "layer sample"]) -> Bool[Tensor, " sample"]:
    """The half of the samples, rounded up, with the higher entropy, mean over layers; of equals the earlier."""
    order = entropies.double().mean(0).argsort(descending=True, stable=True)
    return torch.zeros(len(order), dtype=torch.bool).index_fill(0, order[: (len(order) + 1) // 2], True)


def outliers(scores: Float[Tensor, "sample token"]) -> Bool[Tensor, "sample token"]:
    """Tokens far above the others of their sample: 0.6745 (x − median) / MAD above `OUTLIER`.

    Where more than half of a sample's tokens are equal, MAD = 0 and all above them are outliers.
    """
    middle = scores.double().quantile(0.5, dim=1, keepdim=True)
    away = scores.double() - middle
    spread = away.abs().quantile(0.5, dim=1, keepdim=True)
    return 0.6745 * away > OUTLIER * spread


def separation(layer: Float[Tensor, " sample"]) -> float:
    """How far apart the means of a mixture of two Gaussians are, in sums of their standard deviations."""
    mixture = _mixture(layer)
    low, high = sorted(mixture.means_.flatten())
    return float((high - low) / (mixture.covariances_**0.5).sum())


def _mixture(values: Float[Tensor, " sample"]) -> GaussianMixture:
    return GaussianMixture(2, random_state=0).fit(_column(values))


def _column(values: Tensor):
    return values.double().cpu().numpy()[:, None]
