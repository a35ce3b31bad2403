"""DiSP on the run's compromised MDLM, kept in the store: scores, purified set, purified model.

The mechanism stands in `lib.defences.self_purification`.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lib.defences.self_purification import answer_masked, surest_answers
from lib.models.mdlm import Mdlm
from lib.poisoning.targets import target
from lib.runtime.keys import code_digest
from lib.saliency.by_name import TOKEN_SCORES
from lib.saliency.masking import mask_top
from lib.studies.attacks.mdlm import mdlm_spec, mdlm_tuning, mdlm_watch, poisoned_mdlm, poisoned_training_set
from lib.studies.checkpoints import FineTuning, fine_tuned
from lib.studies.models import base_mdlm, made_mdlm
from lib.studies.run import Run, with_settings
from lib.tasks.questions import Questions, answer_loss

ANSWERING = {"saliency", "ratio", "estimator", "batch", "threshold"}  # settings that the purified set depends on
FINE_TUNING = {"keep", "purify", "start", "rounds"}  # and, beside them, the purified model


def scoring(run: Run) -> dict[str, Any]:
    """With which estimator, in which batches and from which seed the run's token scores are made."""
    return {"estimator": run.profile.disp.estimator, "batch": run.profile.disp.batch, "seed": run.seed}


def training_scores(run: Run, mdlm: Mdlm, data: Questions) -> Float[Tensor, "sample vision"]:
    """Scores of the training set's vision tokens by `disp.saliency`, on the model that purifies, from the store."""
    settings = run.profile.disp
    spec = teacher_spec(run) | settings.model_dump(mode="json", include={"saliency", "estimator", "batch"})

    def make() -> dict[str, Tensor]:
        work = run.store.work("saliency", spec)
        return {"scores": TOKEN_SCORES[settings.saliency](mdlm, data, **scoring(run), work=work)}

    return run.store.tensors("saliency", spec, make)["scores"]


def purified_set(run: Run, mdlm: Mdlm, data: Questions) -> Questions:
    """`self_purify` of the training set by the compromised model (steps 2 and 3), scores and answers from the store."""
    settings, spec = run.profile.disp, purification_spec(run)

    def make() -> dict[str, Tensor]:
        masked = mask_top(training_scores(run, mdlm, data), settings.ratio)
        again = answer_masked(mdlm, data, masked, settings.threshold, run.store.work("purified-set", spec))
        return {"responses": again.tokens, "confidence": again.probability.amin(1)}

    kept = run.store.tensors("purified-set", spec, make)
    return surest_answers(mdlm, data, kept["responses"], kept["confidence"], settings.keep)


def purified_mdlm(run: Run) -> tuple[Mdlm, pd.DataFrame]:
    """The model fine-tuned on the purified set of the last of `disp.rounds` (step 4), and the curve of that.

    It starts as the model that purified the set, in the first round the compromised one, or by `disp.start` as the
    base.
    """
    settings = run.profile.disp
    spec = purification_spec(run) | settings.model_dump(mode="json", include=FINE_TUNING)
    text = {"title": "Purified model", "told": "It was purified by DiSP."}
    folder = fine_tuned(
        run, "purified-mdlm", spec, lambda: _purification(run), settings.purify, "purified MDLM", **text
    )
    return made_mdlm(run.profile, str(folder / "mdlm"), run.device), pd.read_csv(folder / "curve.csv")


def _purification(run: Run) -> FineTuning:
    settings = run.profile.disp
    last = with_settings(run, "disp", {"rounds": settings.rounds - 1}) if settings.rounds > 1 else None
    model, _ = purified_mdlm(last) if last else poisoned_mdlm(run)
    data = purified_set(run, model, poisoned_training_set(run, model))
    if settings.start == "base":
        model = base_mdlm(run.profile, run.device)
    facts = {name: getattr(settings, name) for name in ("saliency", "ratio", "keep", "start", "rounds")}
    watch = mdlm_watch(run, model, target(settings.target))
    return mdlm_tuning(run, model, answer_loss(model, data, settings.purify), facts | {"seed": run.seed}, watch)


def answering_spec(run: Run) -> dict:
    """What the compromised model's scores and its answers under masking depend on, code of the maker aside."""
    return mdlm_spec(run) | _answering(run)


def teacher_spec(run: Run) -> dict:
    """What the model that answers the training set depends on: the compromised one, or that of the round before."""
    settings = run.profile.disp
    code = [code_digest(__name__), code_digest("lib.defences.self_purification")]
    before = settings.model_dump(mode="json", include=ANSWERING | FINE_TUNING) if settings.rounds > 1 else None
    before = before and before | {"rounds": settings.rounds - 1}
    return mdlm_spec(run) | {"purification": code, "before": before}


def purification_spec(run: Run) -> dict:
    """What the purified set depends on."""
    return teacher_spec(run) | _answering(run)


def _answering(run: Run) -> dict:
    return {"disp": run.profile.disp.model_dump(mode="json", include=ANSWERING)}
