"""Filters of a poisoned training set by how a compromised model's attention is spread, and training on what they keep.

BYE-style (arXiv 2505.16916): on samples that carry a trigger attention collapses onto it. A layer's entropy is that of
the attention from the masked response to the vision tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from sklearn.mixture import GaussianMixture
from torch import Tensor

from lib.defences.interface import Defended, Defender
from lib.models.mdlm import Mdlm
from lib.saliency.by_name import layer_attention
from lib.tasks.questions import Questions

SEPARATION = 2.0  # |μ₁ − μ₂| / (σ₁ + σ₂) above which BYE's authors' code calls a layer bimodal

Score = Callable[[Mdlm, Questions], Float[Tensor, "layer sample"]]
Filter = Callable[[Float[Tensor, "layer sample"]], Bool[Tensor, " sample"]]


def filter_by_attention(defender: Defender) -> Defended:
    """Drop the samples of `low_entropy_cluster`, and fine-tune the base model on the others."""
    return retrained(defender, "retrained on the filtered set", outside_low_cluster, _entropies(defender))


def halve_by_attention(defender: Defender) -> Defended:
    """As `filter_by_attention`, but kept is the half of the samples whose entropy, mean over layers, is the higher.

    No layer need tell the poisoned from the rest by itself; less than half of the set must be poisoned.
    """
    return retrained(defender, "retrained on the half of higher entropy", higher_half, _entropies(defender))


def retrained(defender: Defender, done: str, keep: Filter, score: Score) -> Defended:
    """The base model fine-tuned on what `keep` keeps by the scores of the training set under the suspect model."""

    def begin() -> tuple[Mdlm, Questions]:
        suspect = defender.suspect()
        data = defender.training_set(suspect)
        return defender.base(), data[keep(score(suspect, data))]

    return Defended(defender.trained(done, defender.train, begin))


def _entropies(defender: Defender) -> Score:
    return lambda suspect, data: attention_entropy(suspect, data, defender.batch)


def attention_entropy(mdlm: Mdlm, data: Questions, batch: int) -> Float[Tensor, "layer sample"]:
    """Entropy of the attention that each sample's vision tokens receive, layer by layer."""
    return entropy(layer_attention(mdlm, data, batch))


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


def outside_low_cluster(entropies: Float[Tensor, "layer sample"]) -> Bool[Tensor, " sample"]:
    """What BYE keeps: the samples that are not of `low_entropy_cluster`."""
    return ~low_entropy_cluster(entropies)


def higher_half(entropies: Float[Tensor, "layer sample"]) -> Bool[Tensor, " sample"]:
    """The half of the samples, rounded up, with the higher score, mean over layers; of equals the earlier."""
    order = entropies.double().mean(0).argsort(descending=True, stable=True)
    return torch.zeros(len(order), dtype=torch.bool).index_fill(0, order[: (len(order) + 1) // 2], True)


def separation(layer: Float[Tensor, " sample"]) -> float:
    """How far apart the means of a mixture of two Gaussians are, in sums of their standard deviations."""
    mixture = _mixture(layer)
    low, high = sorted(mixture.means_.flatten())
    return float((high - low) / (mixture.covariances_**0.5).sum())


def _mixture(values: Float[Tensor, " sample"]) -> GaussianMixture:
    return GaussianMixture(2, random_state=0).fit(_column(values))


def _column(values: Tensor):
    return values.double().cpu().numpy()[:, None]


KEEP: dict[str, Filter] = {"BYE-style filtering": outside_low_cluster, "BYE's score, half kept": higher_half}
