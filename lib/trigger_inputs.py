"""Telling triggered questions from clean ones as they are asked: how concentrated saliency is, beside rival scores."""

from __future__ import annotations

import sys

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib import filters
from lib.answering import Questions
from lib.attacks.mdlm import poisoned_mdlm, test_questions
from lib.config import Run
from lib.defences import OVERLAYS, clean_share
from lib.detection import auroc
from lib.filters import attention, blended_entropy, entropy, vision_ratio
from lib.models.mdlm import Mdlm
from lib.purification import purification_spec
from lib.store import code_digest
from lib.token_scores import fisher


def input_scores(run: Run, mdlm: Mdlm, data: Questions) -> dict[str, Float[Tensor, " sample"]]:
    """Suspicion of every question, higher for more, by name.

    saliency, top share: the most salient token's share of the Fisher–Jacobian trace. saliency, entropy: minus the
    entropy of those shares. BYE: minus that of the attention that vision tokens receive (arXiv 2505.16916).
    CleanSight: attention to vision over attention to text (arXiv 2603.12989). STRIP: minus the entropy of the answer
    under blending (arXiv 1902.06531); it alone knows clean data.
    """
    settings = run.profile.disp
    scores = fisher(mdlm, data, settings, run.seed)
    received = attention(mdlm, data, settings.batch)
    blended = blended_entropy(mdlm, data, clean_share(run, mdlm), OVERLAYS, run.seed, settings.batch)
    return {
        "saliency, top share": (scores.amax(1) / scores.sum(1)).double(),
        "saliency, entropy": -entropy(scores),
        "BYE": -entropy(received.mean(0)),
        "CleanSight": vision_ratio(received),
        "STRIP": -blended,
    }


def input_detection(run: Run) -> pd.DataFrame:
    """AUROC of every score on `disp.curve_questions` test questions, each without and with the trigger.

    Columns score, auroc, low, high (95 % bootstrap), average_precision, n, n_poisoned.
    """
    mdlm, count = poisoned_mdlm(run)[0], run.profile.disp.curve_questions

    def make() -> pd.DataFrame:
        clean, hit = (input_scores(run, mdlm, data) for data in test_questions(run, mdlm, count))
        rows = []
        for name in clean:
            truth = torch.arange(len(clean[name]) + len(hit[name])) >= len(clean[name])
            rows.append({"score": name} | auroc(torch.cat([clean[name], hit[name]]), truth, run.seed))
        return pd.DataFrame(rows)

    spec = purification_spec(run) | {"questions": count, "detector": code_digest(filters, sys.modules[__name__])}
    return run.store.table("input-detection", spec, make)
