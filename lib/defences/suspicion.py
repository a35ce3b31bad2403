"""How suspicious a question is as it is asked: how concentrated saliency is, beside the scores of other defences."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lib.defences.filters import entropy
from lib.defences.input_tests import OVERLAYS, blended_entropy, vision_ratio
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
    entropy of those shares. BYE: minus that of the attention that vision tokens receive (arXiv 2505.16916).
    CleanSight: attention to vision over attention to text (arXiv 2603.12989). STRIP: minus the entropy of the answer
    under blending (arXiv 1902.06531); it alone looks at samples known to be `clean`. disagreement: how much random
    masks change the answer (`lib.defences.random_masks`), which is decoded at `threshold`.
    """
    scores = directional(mdlm, data, estimator=estimator, batch=batch, seed=seed)
    received = layer_attention(mdlm, data, batch)
    blended = blended_entropy(mdlm, data, clean, OVERLAYS, seed, batch)
    return {
        "saliency, top share": (scores.amax(1) / scores.sum(1)).double(),
        "saliency, entropy": -entropy(scores),
        "BYE": -entropy(received.mean(0)),
        "CleanSight": vision_ratio(received),
        "STRIP": -blended,
        "disagreement": disagreement(mdlm, data, threshold, seed),
    }
