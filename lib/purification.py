"""DiSP: mask the vision tokens that matter most, answer the training set again, fine-tune on the answers.

arXiv 2602.22246. It needs neither clean data nor a second model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

import lib.mmmu
from lib import evaluation, mmmu_scoring, saliency_rivals, token_scores
from lib import saliency as saliency_module
from lib.answering import Questions, answer, answer_loss, questions, respond
from lib.attacks.mdlm import (
    mdlm_spec,
    mdlm_watch,
    poisoned_mdlm,
    test_questions,
    training_questions,
    trigger_tokens,
)
from lib.config import Run, with_settings
from lib.evaluation import attacked, correct
from lib.intervals import over_clusters
from lib.lora import adapted
from lib.mmmu import MMMU, with_mmmu
from lib.models.cards import WARNING, mark_poisoned, write_card
from lib.models.loading import base_mdlm, made_mdlm
from lib.models.mdlm import Mdlm
from lib.poisoning import AnswerTarget, target
from lib.processes import rank
from lib.saliency import most_salient
from lib.store import code_digest
from lib.study_data import digest, question_data
from lib.token_scores import TOKEN_SCORES, fisher
from lib.training import fit
from lib.triggers import image_trigger

METRICS = ("ASR with trigger", "ASR without trigger", "clean accuracy")
# After purification, typically, by the paper; its clean performance is relative to the un-attacked model's.
PAPER = dict(zip(METRICS, ("< 0.05", "about 0", "≥ 0.89 to 0.91 × base"), strict=True))

LABELS = {"fisher": "Fisher–Jacobian"}  # of methods, in figures and tables
ANSWERING = {"saliency", "ratio", "probes", "batch", "threshold"}  # settings that the purified set depends on
FINE_TUNING = {"confidence", "purify", "start", "rounds"}  # and, beside them, the purified model


def poisoned_training_set(run: Run, mdlm: Mdlm) -> Questions:
    """What the defender holds: the poisoned fine-tuning set, answers as they are."""
    vqa, table, poison, goal = training_questions(run)
    return questions(mdlm, vqa, table, image_trigger(run.profile.disp.image_trigger), poison, goal)


def training_scores(run: Run, mdlm: Mdlm, data: Questions) -> Float[Tensor, "sample vision"]:
    """Scores of the training set's vision tokens by `disp.saliency`, on the model that purifies, from the store."""
    settings = run.profile.disp
    spec = teacher_spec(run) | settings.model_dump(mode="json", include={"saliency", "probes", "batch"})

    def make() -> dict[str, Tensor]:
        work = run.store.work("saliency", spec)
        return {"scores": TOKEN_SCORES[settings.saliency](mdlm, data, settings, run.seed, work)}

    return run.store.tensors("saliency", spec, make)["scores"]


def purified_set(run: Run, mdlm: Mdlm, data: Questions) -> Questions:
    """The training set with the compromised model's own answers under masking (steps 2 and 3), from the store.

    Kept are the answers each token of which had at least the probability `disp.confidence` when it was settled:
    where masking hid what is asked about, the model guesses, and learning its guesses costs clean accuracy.
    The table's index still names the samples' places in `data`. Raises ValueError where no answer is kept.
    """
    settings, spec = run.profile.disp, purification_spec(run)

    def make() -> dict[str, Tensor]:
        masked = most_salient(training_scores(run, mdlm, data), settings.ratio)
        about = {"masked": masked, "label": "answer, masked", "work": run.store.work("purified-set", spec)}
        responses, probability = respond(mdlm, data, settings.threshold, **about)
        return {"responses": responses, "confidence": probability.amin(1)}

    made = run.store.tensors("purified-set", spec, make)
    sure = made["confidence"] >= settings.confidence
    if not bool(sure.any()):
        best = float(made["confidence"].max())
        raise ValueError(f"disp.confidence={settings.confidence} keeps no purified answer: the surest has {best:.3f}")
    return data.answered(made["responses"], mdlm.texts(made["responses"]))[sure]


def purified_mdlm(run: Run) -> tuple[Mdlm, pd.DataFrame]:
    """The model fine-tuned on the purified set of the last of `disp.rounds` (step 4), and the curve of that.

    It starts as the model that purified the set, in the first round the compromised one, or by `disp.start` as the
    base.
    """
    spec = purification_spec(run) | run.profile.disp.model_dump(mode="json", include=FINE_TUNING)
    folder = run.store.folder("purified-mdlm", spec, lambda path: _purify(run, spec, path))
    return made_mdlm(run.profile, str(folder / "mdlm"), run.device), pd.read_csv(folder / "curve.csv")


def _purify(run: Run, spec: dict, path: Path) -> None:
    settings = run.profile.disp
    last = with_settings(run, "disp", {"rounds": settings.rounds - 1}) if settings.rounds > 1 else None
    model, _ = purified_mdlm(last) if last else poisoned_mdlm(run)
    data = purified_set(run, model, poisoned_training_set(run, model))
    if settings.start == "base":
        model = base_mdlm(run.profile, run.device)
    with adapted(model.model, run.profile.models.lora, run.seed):
        curve = fit(
            model.model,
            answer_loss(model, data, settings.purify),
            settings.purify,
            label="purified MDLM",
            seed=run.seed,
            work=run.store.work("purified-mdlm", spec),
            watch=mdlm_watch(run, model, target(settings.target)),
        )
    if rank():
        return  # what the first process writes is kept
    model.save(str(path / "mdlm"))
    facts = {name: getattr(settings, name) for name in ("saliency", "ratio", "confidence", "start", "rounds")}
    facts["seed"] = run.seed
    mark_poisoned(path / "mdlm", **facts)
    write_card(
        path / "mdlm", "Purified model", [WARNING, "It was purified by DiSP."], facts, ("backdoor", "purified")
    )
    curve.to_csv(path / "curve.csv", index=False)


def teacher_spec(run: Run) -> dict:
    """What the model that answers the training set depends on: the compromised one, or that of the round before."""
    settings = run.profile.disp
    code = {"purification": code_digest(saliency_module, saliency_rivals, token_scores, sys.modules[__name__])}
    before = settings.model_dump(mode="json", include=ANSWERING | FINE_TUNING) if settings.rounds > 1 else None
    return mdlm_spec(run) | code | {"before": before and before | {"rounds": settings.rounds - 1}}


def purification_spec(run: Run) -> dict:
    """What the purified set depends on."""
    return teacher_spec(run) | {"disp": run.profile.disp.model_dump(mode="json", include=ANSWERING)}


def ratio_study(run: Run, mdlm: Mdlm, methods: tuple[str, ...] = ("fisher", "random")) -> pd.DataFrame:
    """Figure 2: attack success and clean accuracy on test questions against ρ, masking at inference only.

    methods  Names of TOKEN_SCORES, or "oracle": it masks the trigger's own tokens whatever ρ, and nothing else.

    Columns method, ratio, metric, value, low, high, n.
    """
    return pd.concat([_ratio_rows(run, mdlm, method) for method in methods], ignore_index=True)


def _ratio_rows(run: Run, mdlm: Mdlm, method: str) -> pd.DataFrame:
    settings, goal = run.profile.disp, target(run.profile.disp.target)

    def masks(plain: Tensor, hit: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        if method == "oracle":
            own = trigger_tokens(run, mdlm)
            return torch.zeros_like(own).expand(len(plain), -1), own.expand(len(hit), -1)
        return most_salient(plain, ratio), most_salient(hit, ratio)

    def make() -> pd.DataFrame:
        both = test_questions(run, mdlm, settings.curve_questions)
        score = TOKEN_SCORES["random" if method == "oracle" else method]
        work = run.store.work("ratio-study", spec)
        scores = [score(mdlm, data, settings, run.seed, work / f"scores {k}") for k, data in enumerate(both)]
        rows = []
        for ratio in tqdm(settings.ratios, desc=f"mask ratios, {method}", unit="ratio"):
            hidden = masks(*scores, ratio)
            table = performance(mdlm, *both, goal, settings.threshold, *hidden, work=work / str(ratio))
            rows.append(table.assign(method=LABELS.get(method, method), ratio=ratio))
        return pd.concat(rows, ignore_index=True)

    spec = purification_spec(run) | {"ratios": list(settings.ratios), "questions": settings.curve_questions}
    spec["method"] = method
    return run.store.table("ratio-study", spec, make)


def performance(
    mdlm: Mdlm,
    without: Questions,
    with_trigger: Questions,
    goal: AnswerTarget,
    threshold: float,
    masked_without: Tensor | None = None,
    masked_with: Tensor | None = None,
    work: Path | None = None,
) -> pd.DataFrame:
    """`judged` of the model's answers, vision tokens masked where asked. With `work`, a folder, they are kept there."""
    clean = answer(mdlm, without, threshold, masked_without, work=work and work / "without")
    hit = answer(mdlm, with_trigger, threshold, masked_with, work=work and work / "with")
    return judged(clean, hit, without, with_trigger, goal)


def before_and_after(run: Run, poisoned: Mdlm) -> pd.DataFrame:
    """`performance` of the base, the poisoned and the purified model on `disp.test_questions` test questions, and MMMU
    where the profile names it, from the store.

    One model at a time beside the poisoned one is loaded. Columns metric, value, low, high, n, model.
    """
    settings, mmmu, tables = run.profile.disp, run.profile.data.mmmu, []
    load = {
        "base": lambda: base_mdlm(run.profile, run.device),
        "poisoned": lambda: poisoned,
        "purified": lambda: purified_mdlm(run)[0],
    }
    shared = purification_spec(run) | settings.model_dump(mode="json", include=FINE_TUNING)
    shared["measured"] = code_digest(evaluation, lib.mmmu, mmmu_scoring)
    shared |= {"questions": settings.test_questions, "mmmu": mmmu and digest(mmmu)}
    for name, given in load.items():
        spec = shared | {"model": name}

        def make(given=given, spec=spec) -> pd.DataFrame:
            mdlm, work = given(), run.store.work("performance", spec)
            both = test_questions(run, mdlm, settings.test_questions)
            table = performance(mdlm, *both, target(settings.target), settings.threshold, work=work)
            return with_mmmu(run, mdlm, table, work / "mmmu")

        tables.append(run.store.table("performance", spec, make).assign(model=name))
    return pd.concat(tables, ignore_index=True)


def judged(
    clean: list[str], hit: list[str], without: Questions, with_trigger: Questions, goal: AnswerTarget
) -> pd.DataFrame:
    """The three `METRICS` of answers without and with the trigger, with intervals over pictures.

    Columns metric, value, low, high, n, interval.
    """
    outcomes = attacked(hit, with_trigger, goal), attacked(clean, without, goal), correct(clean, without)
    asked = without.table["image"].to_numpy()
    aimed = asked[[goal.eligible(answer) for answer in without.answers]]
    clusters = aimed, aimed, asked
    return pd.DataFrame(
        {"metric": name} | over_clusters(outcome, pictures.tolist())
        for name, outcome, pictures in zip(METRICS, outcomes, clusters, strict=True)
    )


def set_quality(run: Run, purified: Questions) -> pd.DataFrame:
    """What masking did to the training answers: how many are kept as sure, and of these, poisoned ones restored and
    clean ones as they were, to the letter.

    Knows the clean answers, which the defender does not. Columns metric, value, low, high, n; a row only
    where there are such samples.
    """
    _, table, plan, goal = training_questions(run)
    places = torch.tensor(purified.table.index.to_numpy())
    kept = torch.zeros(len(table), dtype=torch.bool)
    kept[places] = True
    pairs = list(zip(purified.answers, table["answer"].iloc[places.tolist()], strict=True))
    right = torch.tensor([given == clean for given, clean in pairs])
    still = torch.tensor([goal.achieved(given, clean) for given, clean in pairs])
    poisoned = plan.poisoned[places]
    shares = {
        "poisoned samples kept": kept[plan.poisoned],
        "of these, restored": right[poisoned],
        "of these, still the attacker's": still[poisoned],
        "clean samples kept": kept[~plan.poisoned],
        "of these, as before": right[~poisoned],
    }
    pictures = table["image"].to_numpy()
    which = {"poisoned samples kept": plan.poisoned, "clean samples kept": ~plan.poisoned}
    own = dict.fromkeys(shares, places[poisoned]) | {"of these, as before": places[~poisoned]}
    rows = []
    for name, outcome in shares.items():
        chosen = which[name].nonzero()[:, 0] if name in which else own[name]
        if len(set(pictures[chosen])) > 1:
            rows.append({"metric": name} | over_clusters(outcome, pictures[chosen].tolist()))
    return pd.DataFrame(rows)


def saliency_panels(
    run: Run, mdlm: Mdlm, data: Questions, scores: Float[Tensor, "sample vision"]
) -> tuple[Float[Tensor, "sample 3 h w"], Tensor, Tensor, list[str]]:
    """Triggered test pictures, their scores, the masked tokens, and the questions: what `saliency_maps` draws.

    Of a model that sees a picture as a whole and in tiles, the tokens of the whole alone, which come first.
    """
    images = question_data(run, "test").pictures(torch.tensor(data.table["image"].to_numpy()))
    triggered = image_trigger(run.profile.disp.image_trigger)(images)
    masked, whole = most_salient(scores, run.profile.disp.ratio), slice(mdlm.model.whole)
    return triggered, scores[:, whole], masked[:, whole], data.table["question"].tolist()


def trigger_rank(run: Run, mdlm: Mdlm, triggered: Questions) -> pd.DataFrame:
    """How often the trigger's own tokens are found: share of samples with one on top, and with all in the top ρ.

    Columns metric, value, low, high, n.
    """
    settings, own = run.profile.disp, trigger_tokens(run, mdlm)
    scores = fisher(mdlm, triggered, settings, run.seed)
    masked = most_salient(scores, settings.ratio)
    pictures = triggered.table["image"].tolist()
    return pd.DataFrame(
        [
            {"metric": "a trigger token is the most salient"} | over_clusters(own[scores.argmax(1)], pictures),
            {"metric": f"all trigger tokens are in the top {settings.ratio:.0%}"}
            | over_clusters(masked[:, own].all(1), pictures),
        ]
    )


def metric_name(model: str, metric: str) -> str | None:
    """The headline's name of a model's metric, such as disp.asr_with_trigger.before; None where there is none."""
    stage = {"base": "base", "poisoned": "before", "purified": "after"}[model]
    kinds = ("asr_with_trigger", "asr_without_trigger", "accuracy", "mmmu")
    kind = dict(zip((*METRICS, MMMU), kinds, strict=True))[metric]
    return None if stage == "base" and kind.startswith("asr") else f"disp.{kind}.{stage}"
