"""How suspicious a question is as it is asked: how concentrated saliency is, beside the scores of other defences."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lib.defences.attention_stealing import calibrated, watch
from lib.defences.filters import entropy
from lib.defences.input_tests import OVERLAYS, blended_entropy
from lib.defences.random_masks import disagreement
from lib.models.mdlm import Mdlm
from lib.saliency.by_name import directional, layer_attention
from lib.settings.sections import Estimator
from lib.tasks.questions import Questions


def input_scores(
    mdlm: Mdlm, data: Questions, clean: Questions, *, threshold: float, estimator: Estimator, batch: int, seed: int
) -> dict[str, Float[Tensor, " sample"]]:
    """Suspicion of every question, higher for more, by name.

    saliency, top share: the most salient token's share of the Fisher–Jacobian scores. saliency, entropy: minus the
    entropy of those shares. BYE-style: minus that of the attention that vision tokens receive, mean over layers, where
    BYE chooses layers by the set (`lib.defences.filters`). CleanSight: its distance from samples known to be `clean`
    (`lib.defences.attention_stealing`). STRIP-like: minus the entropy of the answer under blending with these
    (`lib.defences.input_tests`). disagreement: how much random masks change the answer (`lib.defences.random_masks`),
    which is decoded at `threshold`.
    """
    scores = directional(mdlm, data, estimator=estimator, batch=batch, seed=seed)
    received = layer_attention(mdlm, data, batch)
    normal = calibrated(watch(mdlm, clean, batch).ratios)
    blended = blended_entropy(mdlm, data, clean, OVERLAYS, seed, batch)
    return {
        "saliency, top share": (scores.amax(1) / scores.sum(1)).double(),
        "saliency, entropy": -entropy(scores),
        "BYE-style": -entropy(received.mean(0)),
        "CleanSight": normal.distance(watch(mdlm, data, batch).ratios),
        "STRIP-like": -blended,
        "disagreement": disagreement(mdlm, data, threshold, seed),
    }
