"""DiSP's masking of every question as it is asked, without any training."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from lib.defences.interface import Defended, Defender
from lib.saliency.by_name import TOKEN_SCORES
from lib.saliency.masking import mask_top
from lib.tasks.questions import Questions


def mask_at_inference(defender: Defender) -> Defended:
    """The suspect model, from which every question's most salient vision tokens are hidden."""
    mdlm, score = defender.suspect(), TOKEN_SCORES[defender.score]
    settings = {"estimator": defender.estimator, "batch": defender.batch, "seed": defender.seed}

    def mask(data: Questions) -> Bool[Tensor, "sample vision"]:
        return mask_top(score(mdlm, data, **settings), defender.ratio)

    return Defended(mdlm, mask=mask)
