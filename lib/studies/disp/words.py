"""DiSP with the question's tokens masked too, on the collapse study's MDLM: a trigger may be in either modality.

As `lib.studies.disp.purification`, which masks vision tokens alone: mask the most salient tokens, answer the training
set again, keep the sure answers, fine-tune on them. `WAYS` says which tokens are masked.

Limits on easy-VQA: a word scores 40 to 130 times a vision token, so that the joint ranking is nearly one of words, and
a question of five or six words is seldom answered with one of them masked.
"""

from __future__ import annotations

from torch import Tensor

from lib.defences.self_purification import surest_answers
from lib.models.mdlm import Mdlm
from lib.runtime.keys import code_digest
from lib.saliency.words import WAYS, joint_masks, joint_saliency
from lib.studies.attacks.mdlm import mdlm_spec, mdlm_tuning, poisoned_mdlm, poisoned_training_set
from lib.studies.checkpoints import FineTuning, fine_tuned
from lib.studies.disp.purification import scoring
from lib.studies.models import made_mdlm
from lib.studies.run import Run
from lib.tasks.questions import Questions, answer_loss, respond_masked

# Masked shares of the tokens of each way, chosen before any of this was measured: one of 64 vision tokens, one of the
# 5 to 12 words and pieces of a question, and two of all of them together.
RATIOS = {"vision": 0.02, "prompt": 0.12, "joint": 0.03}


def jointly_purified_set(run: Run, mdlm: Mdlm, data: Questions, protocol: str, way: str) -> Questions:
    """The training set with the compromised model's own sure answers under masking, from the store.

    Questions keep their own words. The table's index still names the samples' places in `data`. Raises ValueError
    where no answer is kept.
    """
    settings, scored, spec = run.profile.disp, joint_spec(run, protocol), joint_spec(run, protocol, way)

    def score() -> dict[str, Tensor]:
        work = run.store.work("joint-saliency", scored)
        vision, prompt = joint_saliency(mdlm, data, **scoring(run), work=work)
        return {"vision": vision, "prompt": prompt}

    def make() -> dict[str, Tensor]:
        scores = run.store.tensors("joint-saliency", scored, score)
        masked = joint_masks(mdlm, data, (scores["vision"], scores["prompt"]), way, RATIOS[way])
        work = run.store.work("jointly-purified-set", spec)
        responses, probability = respond_masked(mdlm, data, settings.threshold, *masked, work)
        return {"responses": responses, "confidence": probability.amin(1)}

    kept = run.store.tensors("jointly-purified-set", spec, make)
    return surest_answers(mdlm, data, kept["responses"], kept["confidence"], settings.keep)


def jointly_purified_mdlm(run: Run, protocol: str, way: str) -> Mdlm:
    """The protocol's compromised model fine-tuned on the purified set of a way of masking, from the store.

    Raises ValueError for a way that is none of `WAYS`.
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r} must be one of {', '.join(WAYS)}")
    spec, settings = joint_model_spec(run, protocol, way), run.profile.disp.purify

    def purification() -> FineTuning:
        model, _ = poisoned_mdlm(run, protocol)
        data = jointly_purified_set(run, model, poisoned_training_set(run, model, protocol), protocol, way)
        facts = {"protocol": protocol, "masked": way, "ratio": RATIOS[way], "samples": len(data), "seed": run.seed}
        return mdlm_tuning(run, model, answer_loss(model, data, settings), facts)

    told = "It was purified by DiSP, which masked tokens of picture and question."
    label, text = f"purified MDLM, {way}", {"title": "Purified model", "told": told}
    folder = fine_tuned(run, "jointly-purified-mdlm", spec, purification, settings, label, **text)
    return made_mdlm(run.profile, str(folder / "mdlm"), run.device)


def joint_spec(run: Run, protocol: str, way: str | None = None) -> dict:
    """What the purified set of a way of masking depends on; without one, the scores."""
    kept = {"estimator", "batch"} | ({"threshold"} if way else set())
    masking = {"masked": way, "ratio": RATIOS[way]} if way else {}
    code = code_digest(__name__), code_digest("lib.defences.self_purification")
    settings = run.profile.disp.model_dump(mode="json", include=kept)
    return mdlm_spec(run, protocol) | masking | {"disp": settings, "purification": list(code)}


def joint_model_spec(run: Run, protocol: str, way: str) -> dict:
    """What the purified model of a way of masking depends on."""
    fine_tuning = run.profile.disp.model_dump(mode="json", include={"purify", "keep"})
    return joint_spec(run, protocol, way) | {"fine-tuning": fine_tuning}
