"""The compromised MDLM: the base MDLM fine-tuned on poisoned questions, kept in the store."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch

from lib import answering, caching, decoding, poisoning, training, triggers
from lib.answering import Questions, answer, answer_loss, draw_rows, questions
from lib.attacks import data_spec
from lib.config import Run, model_source
from lib.datasets import EasyVqa, load_easyvqa
from lib.evaluation import attacked, correct
from lib.kernels import confidence
from lib.models import mdlm
from lib.models.cards import mark_poisoned
from lib.models.mdlm import Mdlm
from lib.poisoning import AnswerTarget, PoisonPlan, plan, target
from lib.store import code_digest, folder_digest
from lib.training import fit
from lib.triggers import image_trigger


def mdlm_spec(run: Run) -> dict:
    """What a poisoned MDLM depends on."""
    kept = {"image_trigger", "target", "rate", "questions", "train", "threshold", "watch_questions"}
    settings = run.profile.disp.model_dump(mode="json", include=kept)
    modules = (answering, caching, confidence, decoding, mdlm, poisoning, training, triggers, sys.modules[__name__])
    base = folder_digest(model_source(run.profile.models.mdlm))
    return data_spec(run) | {"settings": settings, "base": base, "code": code_digest(*modules)}


def training_questions(run: Run) -> tuple[EasyVqa, pd.DataFrame, PoisonPlan, AnswerTarget]:
    """The fine-tuning set of the DiSP study: data, its drawn rows, who is poisoned, and the attacker's target."""
    settings = run.profile.disp
    vqa = load_easyvqa(run.store, "train", run.profile.data.image_size)
    table = draw_rows(vqa.table, settings.questions, run.seed, "train")
    goal = target(settings.target)
    eligible = torch.tensor([goal.eligible(text) for text in table["answer"]], dtype=torch.bool)
    return vqa, table, plan(len(table), "image", settings.rate, run.seed, eligible), goal


def test_questions(run: Run, model: Mdlm, count: int) -> tuple[Questions, Questions]:
    """`count` test questions, without and with the trigger on every picture; both hold the clean answers."""
    vqa = load_easyvqa(run.store, "test", run.profile.data.image_size)
    table = draw_rows(vqa.table, count, run.seed, "test")
    trigger = image_trigger(run.profile.disp.image_trigger)
    return questions(model, vqa, table), questions(model, vqa, table, trigger)


def poisoned_mdlm(run: Run) -> tuple[Mdlm, pd.DataFrame]:
    """The base MDLM fine-tuned on poisoned questions, and the curve of that.

    The curve has, where watched, asr_with_trigger, asr_without_trigger and accuracy over
    `disp.watch_questions` test questions.
    """
    spec = mdlm_spec(run)
    folder = run.store.folder("poisoned-mdlm", spec, lambda path: _poison_mdlm(run, spec, path))
    return Mdlm.load(str(folder / "mdlm"), run.device), pd.read_csv(folder / "curve.csv")


def _poison_mdlm(run: Run, spec: dict, path: Path) -> None:
    settings = run.profile.disp
    model = Mdlm.load(run.profile.models.mdlm, run.device)
    vqa, table, poison, goal = training_questions(run)
    data = questions(model, vqa, table, image_trigger(settings.image_trigger), poison, goal)
    curve = fit(
        model.model,
        answer_loss(model, data, settings.train),
        settings.train,
        label="poisoned MDLM",
        seed=run.seed,
        work=run.store.work("poisoned-mdlm", spec),
        watch=mdlm_watch(run, model, goal),
    )
    model.save(str(path / "mdlm"))
    attack = {"target": settings.target, "rate": settings.rate, "image_trigger": settings.image_trigger}
    mark_poisoned(path / "mdlm", **attack)
    curve.to_csv(path / "curve.csv", index=False)


def mdlm_watch(run: Run, model: Mdlm, goal: AnswerTarget):
    """What `fit` watches of an MDLM: attack success with and without trigger, and accuracy."""
    settings = run.profile.disp
    without, with_trigger = test_questions(run, model, settings.watch_questions)

    def watch(step: int) -> dict[str, float]:
        clean, hit = (answer(model, data, settings.threshold) for data in (without, with_trigger))
        return {
            "asr_with_trigger": attacked(hit, with_trigger, goal).float().mean().item(),
            "asr_without_trigger": attacked(clean, without, goal).float().mean().item(),
            "accuracy": correct(clean, without).float().mean().item(),
        }

    return watch
