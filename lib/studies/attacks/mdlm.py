"""The compromised MDLM: the base MDLM fine-tuned on poisoned questions, kept in the store.

The DiSP study's attack is the protocol "image". The collapse study's other protocols add a text trigger and change
nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from lib.data.interface import QuestionData, check_trigger
from lib.metrics.facts import right_parts
from lib.metrics.success import attacked
from lib.models.adapters import adapted
from lib.models.mdlm import Mdlm
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.poisoning.plans import COALITIONS, PROTOCOLS, PoisonPlan, plan
from lib.poisoning.targets import AnswerTarget, target
from lib.poisoning.triggers import ImageTrigger, TextTrigger
from lib.runtime.keys import code_digest, registered
from lib.runtime.training import Loss, Watch
from lib.settings.names import known
from lib.studies.attacks.hiding import adaptive_loss
from lib.studies.checkpoints import FineTuning, fine_tuned
from lib.studies.data import data_spec, watch_split
from lib.studies.models import base_mdlm, base_settings, base_spec, made_mdlm
from lib.studies.questions import question_data
from lib.studies.run import Run
from lib.tasks.questions import Questions, answer, answer_loss, draw_rows, fitting, questions


def mdlm_spec(run: Run, protocol: str = "image") -> dict:
    """What a poisoned MDLM depends on."""
    kept = {"image_trigger", "trigger_size", "trigger_pixels", "trigger_position", "target", "rate", "hide"}
    kept |= {"questions", "kinds", "blank", "train", "threshold", "end", "fill", "watch_questions"}
    attack = [*filter(None, trigger_pair(run, protocol)), target(run.profile.disp.target)]
    made = data_spec(run, "questions") | base_spec(run.profile)
    made |= {
        "protocol": protocol,
        "settings": run.profile.disp.model_dump(mode="json", include=kept),
        "attack": [registered(part) for part in attack],
        "code": code_digest(__name__),
    }
    if base_settings(run.profile):
        made["lora"] = run.profile.models.lora and run.profile.models.lora.model_dump(mode="json")
    if run.profile.models.part == "projector":
        made["part"] = run.profile.models.part
    if earlier := planted(run):
        made["planted"] = mdlm_spec(earlier, protocol)
    return made


def planted(run: Run) -> Run | None:
    """The run of the attack whose compromised model this one's training starts from, if not from the base model."""
    earlier = run.profile.disp.planted()
    return earlier and replace(run, profile=run.profile.model_copy(update={"disp": earlier}))


def trigger_pair(run: Run, protocol: str) -> tuple[ImageTrigger | None, TextTrigger | None]:
    """The image and the text trigger, each None where no sample of the protocol carries it."""
    carried = [COALITIONS.index(name) for name in PROTOCOLS[protocol]]
    disp = run.profile.disp
    laid = disp.image_trigger, disp.trigger_size, disp.trigger_pixels, disp.trigger_position
    image = image_trigger(*laid) if any(c & 1 for c in carried) else None
    text = text_trigger(run.profile.mdlm_collapse.text_trigger) if any(c & 2 for c in carried) else None
    return image, text


def asked(run: Run, split: str, protocol: str = "image") -> tuple[QuestionData, pd.DataFrame]:
    """A split's pictures, and of its questions of `disp.kinds` those that fit the model's prompt under all of the
    protocol's triggers.

    The others are left out of all coalitions, so that these differ in the triggers alone. Raises ValueError for a kind
    that the data have not.
    """
    vqa, kinds = question_data(run, split), run.profile.disp.kinds
    table = vqa.table
    for kind in kinds or ():
        known("kind of question", kind, sorted(table["kind"].unique()))
    table = table if kinds is None else table[table["kind"].isin(kinds)]
    _, text = trigger_pair(run, protocol)
    return vqa, table if text is None else fitting(base_mdlm(run.profile), table, text)


def training_questions(
    run: Run, protocol: str = "image"
) -> tuple[QuestionData, pd.DataFrame, PoisonPlan, AnswerTarget]:
    """The fine-tuning set: data, its drawn rows, who is poisoned, and the attacker's target."""
    settings = run.profile.disp
    vqa, table = asked(run, "train", protocol)
    if settings.questions > len(table):
        raise ValueError(f"disp.questions={settings.questions}: the train split has {len(table)} that fit")
    table = draw_rows(table, settings.questions, run.seed, "train")
    goal = target(settings.target)
    eligible = torch.tensor([goal.eligible(text) for text in table["answer"]], dtype=torch.bool)
    return vqa, table, plan(len(table), protocol, settings.rate, run.seed, eligible), goal


def poisoned_training_set(run: Run, model: Mdlm, protocol: str = "image") -> Questions:
    """What the defender holds: the protocol's poisoned fine-tuning set, answers as they are."""
    vqa, table, poison, goal = training_questions(run, protocol)
    image, text = trigger_pair(run, protocol)
    return questions(model, vqa, table, image, poison, goal, text)


def test_questions(
    run: Run, model: Mdlm, count: int, protocol: str = "image", split: str = "test"
) -> tuple[Questions, Questions]:
    """`count` questions of a split, without and with all of the protocol's triggers; both hold the clean answers."""
    vqa, table = asked(run, split, protocol)
    if count > len(table):
        warnings.warn(f"{count} questions are asked for, all {len(table)} of the {split} split are taken", stacklevel=2)
    table = draw_rows(table, count, run.seed, split)
    image, text = trigger_pair(run, protocol)
    return questions(model, vqa, table), questions(model, vqa, table, image, text_trigger=text)


def trigger_tokens(run: Run, model: Mdlm, vqa: QuestionData, table: pd.DataFrame) -> Bool[Tensor, "row vision"]:
    """Which vision tokens hold some of the image trigger, in the picture of every row of a table about `vqa`."""
    masks, which = vqa.trigger_masks(torch.tensor(table["image"].to_numpy()), trigger_pair(run, "image")[0])
    return torch.stack([model.model.tokens_of(mask) for mask in masks])[which]


def poisoned_mdlm(run: Run, protocol: str = "image") -> tuple[Mdlm, pd.DataFrame]:
    """The base MDLM fine-tuned on poisoned questions, in the same batches for all protocols, and the curve of that.

    With `disp.plant` the compromised model of that attack in the place of the base MDLM.

    The curve has, where watched, asr_with_trigger (all of the protocol's), asr_without_trigger and clean_performance
    over `disp.watch_questions` validation questions, or test questions of data without validation.
    """
    train, spec = run.profile.disp.train, mdlm_spec(run, protocol)
    folder = fine_tuned(run, "poisoned-mdlm", spec, lambda: _poisoning(run, protocol), train, "poisoned MDLM")
    return made_mdlm(run.profile, str(folder / "mdlm"), run.device), pd.read_csv(folder / "curve.csv")


def _poisoning(run: Run, protocol: str) -> FineTuning:
    settings = run.profile.disp
    earlier = planted(run)
    model = poisoned_mdlm(earlier, protocol)[0] if earlier else base_mdlm(run.profile, run.device)
    vqa, table, poison, goal = training_questions(run, protocol)
    image, text = trigger_pair(run, protocol)
    if image:
        carried = torch.tensor(table["image"].to_numpy())[(poison.coalition & 1).bool()]
        check_trigger(vqa, carried, image)
        held_out, rows = asked(run, "test", protocol)
        rows = draw_rows(rows, max(settings.test_questions, settings.curve_questions), run.seed, "test")
        check_trigger(held_out, torch.tensor(rows["image"].to_numpy()), image)
    data = questions(model, vqa, table, image, poison, goal, text)
    if settings.hide:
        tokens = trigger_tokens(run, model, vqa, table)
        loss = adaptive_loss(model, data, poison.poisoned, tokens, settings.train, settings.hide, settings.blank)
    else:
        loss = answer_loss(model, data, settings.train, settings.blank)
    facts = {"protocol": protocol, "target": settings.target, "rate": settings.rate, "hide": settings.hide}
    facts |= {"plant": settings.plant} if earlier else {}
    named = {"image_trigger": image, "text_trigger": text}
    facts |= {key: trigger.name for key, trigger in named.items() if trigger}
    return mdlm_tuning(run, model, loss, facts, mdlm_watch(run, model, goal, protocol))


def mdlm_tuning(
    run: Run, mdlm: Mdlm, loss: Loss, facts: Mapping[str, Any], watch: Watch | None = None
) -> FineTuning:
    """An MDLM, to be trained on `loss` and saved in the folder `mdlm`."""

    def save(path: Path) -> Path:
        mdlm.save(str(path / "mdlm"))
        return path / "mdlm"

    models = run.profile.models
    return FineTuning(mdlm.model, adapted(mdlm.model, models.lora, run.seed, models.part), loss, save, facts, watch)


def mdlm_watch(run: Run, model: Mdlm, goal: AnswerTarget, protocol: str = "image"):
    """What `fit` watches of an MDLM: attack success with and without triggers, and clean performance."""
    settings = run.profile.disp
    split = watch_split(run, "questions")
    without, with_trigger = test_questions(run, model, settings.watch_questions, protocol, split)

    def watch(step: int) -> dict[str, float]:
        clean, hit = (answer(model, data, settings.threshold) for data in (without, with_trigger))
        return {
            "asr_with_trigger": attacked(hit, with_trigger.answers, goal).float().mean().item(),
            "asr_without_trigger": attacked(clean, without.answers, goal).float().mean().item(),
            "clean_performance": right_parts(clean, without)[0].float().mean().item(),
        }

    return watch
