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

from lib import saliency as saliency_module
from lib.answering import Questions, answer, answer_loss, questions, respond
from lib.attacks.mdlm import mdlm_spec, mdlm_watch, poisoned_mdlm, test_questions, training_questions
from lib.config import Run
from lib.datasets import load_easyvqa
from lib.evaluation import attacked, correct, rate
from lib.models.cards import WARNING, write_card
from lib.models.mdlm import Mdlm
from lib.poisoning import AnswerTarget, target
from lib.saliency import fisher_jacobian, most_salient, random_scores
from lib.store import code_digest
from lib.training import fit
from lib.triggers import image_trigger

METRICS = ("ASR with trigger", "ASR without trigger", "clean accuracy")
# After purification, typically, by the paper; its clean performance is relative to the un-attacked model's.
PAPER = dict(zip(METRICS, ("< 0.05", "about 0", "≥ 0.89 to 0.91 × base"), strict=True))


def saliency(
    mdlm: Mdlm, data: Questions, probes: int, seed: int, batch: int
) -> Float[Tensor, "sample vision"]:
    """Fisher–Jacobian scores of every sample's vision tokens (step 1 of DiSP)."""
    device = mdlm.model.device
    scores = [torch.zeros(0, mdlm.model.config.vision_length)]
    for k, part in enumerate(
        tqdm(torch.arange(len(data)).split(batch), desc="saliency", unit="batch", leave=False)
    ):
        with torch.no_grad():
            vision = mdlm.model.project(data.features[data.picture[part]].to(device))
        with torch.autocast(device.type, torch.bfloat16):
            prompts = data.prompts[part].to(device)
            scores.append(fisher_jacobian(mdlm.model, vision, prompts, probes=probes, seed=seed + k).cpu())
    return torch.cat(scores)


def poisoned_training_set(run: Run, mdlm: Mdlm) -> Questions:
    """What the defender holds: the poisoned fine-tuning set, answers as they are."""
    vqa, table, poison, goal = training_questions(run)
    return questions(mdlm, vqa, table, image_trigger(run.profile.disp.image_trigger), poison, goal)


def training_scores(run: Run, mdlm: Mdlm, data: Questions) -> Float[Tensor, "sample vision"]:
    """The training set's saliency on the compromised model, from the store."""
    settings = run.profile.disp
    spec = mdlm_spec(run) | {"probes": settings.probes, "batch": settings.batch}
    spec["saliency"] = code_digest(saliency_module, sys.modules[__name__])

    def make() -> dict[str, Tensor]:
        return {"scores": saliency(mdlm, data, settings.probes, run.seed, settings.batch)}

    return run.store.tensors("saliency", spec, make)["scores"]


def purified_set(run: Run, mdlm: Mdlm, data: Questions) -> Questions:
    """The training set with the compromised model's own answers under masking (steps 2 and 3), from the store.

    Kept are the answers each token of which had at least the probability `disp.confidence` when it was settled:
    where masking hid what is asked about, the model guesses, and learning its guesses costs clean accuracy.
    The table's index still names the samples' places in `data`. Raises ValueError where no answer is kept.
    """
    settings = run.profile.disp

    def make() -> dict[str, Tensor]:
        masked = most_salient(training_scores(run, mdlm, data), settings.ratio)
        responses, probability = respond(mdlm, data, settings.threshold, masked=masked, label="answer, masked")
        return {"responses": responses, "confidence": probability.amin(1)}

    made = run.store.tensors("purified-set", purification_spec(run), make)
    sure = made["confidence"] >= settings.confidence
    if not bool(sure.any()):
        best = float(made["confidence"].max())
        raise ValueError(f"disp.confidence={settings.confidence} keeps no purified answer: the surest has {best:.3f}")
    return data.answered(made["responses"], mdlm.texts(made["responses"]))[sure]


def purified_mdlm(run: Run) -> tuple[Mdlm, pd.DataFrame]:
    """The compromised model fine-tuned on the purified set (step 4), and the curve of that."""
    spec = purification_spec(run) | {"purify": run.profile.disp.purify.model_dump(mode="json")}
    spec["confidence"] = run.profile.disp.confidence
    folder = run.store.folder("purified-mdlm", spec, lambda path: _purify(run, spec, path))
    return Mdlm.load(str(folder / "mdlm"), run.device), pd.read_csv(folder / "curve.csv")


def _purify(run: Run, spec: dict, path: Path) -> None:
    model, _ = poisoned_mdlm(run)
    data = purified_set(run, model, poisoned_training_set(run, model))
    curve = fit(
        model.model,
        answer_loss(model, data, run.profile.disp.purify),
        run.profile.disp.purify,
        label="purified MDLM",
        seed=run.seed,
        work=run.store.work("purified-mdlm", spec),
        watch=mdlm_watch(run, model, target(run.profile.disp.target)),
    )
    model.save(str(path / "mdlm"))
    facts = {"ratio": run.profile.disp.ratio, "seed": run.seed}
    write_card(
        path / "mdlm",
        "Purified model",
        [WARNING, "It was purified by DiSP."],
        facts,
        ("backdoor", "purified"),
    )
    curve.to_csv(path / "curve.csv", index=False)


def purification_spec(run: Run) -> dict:
    """What the purified set depends on."""
    settings = run.profile.disp.model_dump(mode="json", include={"ratio", "probes", "batch", "threshold"})
    return mdlm_spec(run) | {
        "disp": settings,
        "purification": code_digest(saliency_module, sys.modules[__name__]),
    }


def ratio_study(run: Run, mdlm: Mdlm) -> pd.DataFrame:
    """Figure 2: attack success and clean accuracy on test questions against ρ, masking at inference only.

    Columns method, ratio, metric, value, low, high, n.
    """
    settings, goal = run.profile.disp, target(run.profile.disp.target)

    def make() -> pd.DataFrame:
        without, with_trigger = test_questions(run, mdlm, settings.curve_questions)
        scores = {"Fisher–Jacobian": [], "random": []}
        for data in (without, with_trigger):
            scores["Fisher–Jacobian"].append(saliency(mdlm, data, settings.probes, run.seed, settings.batch))
            scores["random"].append(random_scores(len(data), mdlm.model.config.vision_length, run.seed))
        rows = []
        for method, (plain, hit) in scores.items():
            for ratio in tqdm(settings.ratios, desc=f"mask ratios, {method}", unit="ratio"):
                masks = most_salient(plain, ratio), most_salient(hit, ratio)
                table = performance(mdlm, without, with_trigger, goal, settings.threshold, *masks)
                rows.append(table.assign(method=method, ratio=ratio))
        return pd.concat(rows, ignore_index=True)

    spec = purification_spec(run) | {"ratios": list(settings.ratios), "questions": settings.curve_questions}
    return run.store.table("ratio-study", spec, make)


def performance(
    mdlm: Mdlm,
    without: Questions,
    with_trigger: Questions,
    goal: AnswerTarget,
    threshold: float,
    masked_without: Tensor | None = None,
    masked_with: Tensor | None = None,
) -> pd.DataFrame:
    """`judged` of the model's answers, vision tokens masked where asked."""
    clean, hit = (
        answer(mdlm, without, threshold, masked=masked_without),
        answer(mdlm, with_trigger, threshold, masked=masked_with),
    )
    return judged(clean, hit, without, with_trigger, goal)


def judged(
    clean: list[str], hit: list[str], without: Questions, with_trigger: Questions, goal: AnswerTarget
) -> pd.DataFrame:
    """The three `METRICS` of answers without and with the trigger, with Wilson intervals.

    Columns metric, value, low, high, n.
    """
    outcomes = attacked(hit, with_trigger, goal), attacked(clean, without, goal), correct(clean, without)
    return pd.DataFrame(
        {"metric": name} | rate(outcome) for name, outcome in zip(METRICS, outcomes, strict=True)
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
    return pd.DataFrame({"metric": name} | rate(outcome) for name, outcome in shares.items() if len(outcome))


def saliency_panels(
    run: Run, data: Questions, scores: Float[Tensor, "sample vision"]
) -> tuple[Float[Tensor, "sample 3 h w"], Tensor, Tensor, list[str]]:
    """Triggered test pictures, their scores, the masked tokens, and the questions: what `saliency_maps` draws."""
    vqa = load_easyvqa(run.store, "test", run.profile.data.image_size)
    images = vqa.pictures(torch.tensor(data.table["image"].to_numpy()))
    triggered = image_trigger(run.profile.disp.image_trigger)(images)
    return triggered, scores, most_salient(scores, run.profile.disp.ratio), data.table["question"].tolist()


def trigger_rank(run: Run, mdlm: Mdlm, triggered: Questions) -> pd.DataFrame:
    """How often the trigger's own tokens are found: share of samples with one on top, and with all in the top ρ.

    Columns metric, value, low, high, n.
    """
    settings, size = run.profile.disp, run.profile.data.image_size
    scores = saliency(mdlm, triggered, settings.probes, run.seed, settings.batch)
    patch = size // round(scores.shape[1] ** 0.5)
    own = image_trigger(settings.image_trigger).tokens(size, patch)
    masked = most_salient(scores, settings.ratio)
    return pd.DataFrame(
        [
            {"metric": "a trigger token is the most salient"} | rate(own[scores.argmax(1)]),
            {"metric": f"all trigger tokens are in the top {settings.ratio:.0%}"}
            | rate(masked[:, own].all(1)),
        ]
    )


def metric_name(model: str, metric: str) -> str | None:
    """The headline's name of a model's metric, such as disp.asr_with_trigger.before; None where there is none."""
    stage = {"base": "base", "poisoned": "before", "purified": "after"}[model]
    kind = {METRICS[0]: "asr_with_trigger", METRICS[1]: "asr_without_trigger", METRICS[2]: "accuracy"}[metric]
    return None if stage == "base" and kind != "accuracy" else f"disp.{kind}.{stage}"
