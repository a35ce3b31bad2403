"""Filters of a poisoned training set by how a compromised model's attention is spread, and training on what they keep.

BYE (Rong et al. 2025, arXiv 2505.16916) by the rule of its authors' code, `XuankunRong/BYE` at 9a45b2d66a: on samples
that carry a trigger attention collapses onto it.

1. The suspect model reads every sample of the set it was fine-tuned on, without the answer. For every layer, the
   attention of the token that makes the answer's first one to the vision tokens, mean over heads and scaled to sum to
   one, has an entropy.
2. A mixture of two Gaussians is fitted to a layer's entropies. The layer is sensitive if |μ₁ − μ₂| > 2 (σ₁ + σ₂).
3. Of each sample's mean entropy over the sensitive layers, another mixture of two is made. The samples of the one with
   the lower mean are dropped, and the base model is fine-tuned on the others. No clean data is needed.

What differs here, since a masked-diffusion model has no first token: attention is that of the response's positions at
the first denoising step, where all are masked, mean over them. Where theirs ends in an error, without a sensitive layer
or with a single sample, nothing is dropped; equal entropies make no layer sensitive. Entropy is exact (theirs adds 1e-8
in the logarithm).

Not here: TCAP (arXiv 2601.21692) compares attention to system instructions, picture and question. The prompts of our
own model hold no instructions, and its authors' code is not public.
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

SEPARATION = 2.0  # |μ₁ − μ₂| / (σ₁ + σ₂) above which a layer is sensitive

Score = Callable[[Mdlm, Questions], Float[Tensor, "layer sample"]]
Filter = Callable[[Float[Tensor, "layer sample"]], Bool[Tensor, " sample"]]


def bye(defender: Defender) -> Defended:
    """Drop the samples of `low_entropy_cluster`, and fine-tune the base model on the others."""
    return retrained(defender, "retrained on the filtered set", outside_low_cluster, _entropies(defender))


def halve_by_attention(defender: Defender) -> Defended:
    """Ours: as `bye`, but kept is the half of the samples whose entropy, mean over layers, is the higher.

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

    A layer is sensitive where its `separation` is above `SEPARATION`.
    """
    sensitive = [layer.double() for layer in entropies if separation(layer) > SEPARATION]
    score = torch.stack(sensitive).mean(0) if sensitive else torch.zeros(entropies.shape[1])
    if not _vary(score):
        return torch.zeros(len(score), dtype=torch.bool)
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
    """How far apart the means of a mixture of two Gaussians are, in sums of their standard deviations; 0 where all
    values are equal."""
    if not _vary(layer):
        return 0.0
    mixture = _mixture(layer)
    low, high = sorted(mixture.means_.flatten())
    return float((high - low) / (mixture.covariances_**0.5).sum())


def _vary(values: Float[Tensor, " sample"]) -> bool:
    return len(values.unique()) > 1


def _mixture(values: Float[Tensor, " sample"]) -> GaussianMixture:
    return GaussianMixture(2, random_state=0).fit(_column(values))


def _column(values: Tensor):
    return values.double().cpu().numpy()[:, None]


KEEP: dict[str, Filter] = {"BYE": outside_low_cluster, "BYE's score, half kept": higher_half}
