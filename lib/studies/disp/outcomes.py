"""What models do on the attack's test questions: before purification, after it, and masked at inference."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.metrics.intervals import over_clusters
from lib.metrics.success import attacked, correct
from lib.models.mdlm import Mdlm
from lib.poisoning.catalogue import image_trigger
from lib.poisoning.targets import AnswerTarget, target
from lib.runtime.keys import code_digest
from lib.saliency.by_name import TOKEN_SCORES, directional
from lib.saliency.masking import mask_top
from lib.studies.attacks.mdlm import test_questions, training_questions, trigger_tokens
from lib.studies.data import digest
from lib.studies.disp.mmmu import MMMU, with_mmmu
from lib.studies.disp.purification import FINE_TUNING, answering_spec, purification_spec, purified_mdlm, scoring
from lib.studies.models import base_mdlm
from lib.studies.questions import question_data
from lib.studies.run import Run
from lib.tasks.questions import Questions, answer

METRICS = ("ASR with trigger", "ASR without trigger", "clean accuracy")
# After purification, typically, by the paper; its clean performance is relative to the un-attacked model's.
PAPER = dict(zip(METRICS, ("< 0.05", "about 0", "≥ 0.89 to 0.91 × base"), strict=True))

# Of methods, in figures and tables.
LABELS = {"directional": "directional (DiSP)", "late-attention": "attention, late layers"}


def ratio_study(run: Run, mdlm: Mdlm, methods: tuple[str, ...] = ("directional", "random")) -> pd.DataFrame:
    """Figure 2: attack success and clean accuracy on test questions against ρ, masking at inference only.

    methods  Names of TOKEN_SCORES, or "oracle": it masks the trigger's own tokens whatever ρ, and nothing else.

    Columns method, ratio, metric, value, low, high, n.
    """
    return pd.concat([_ratio_rows(run, mdlm, method) for method in methods], ignore_index=True)


def _ratio_rows(run: Run, mdlm: Mdlm, method: str) -> pd.DataFrame:
    settings, goal = run.profile.disp, target(run.profile.disp.target)

    def masks(plain: Tensor, hit: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        if method == "oracle":
            tokens = trigger_tokens(run, mdlm)
            return torch.zeros_like(tokens).expand(len(plain), -1), tokens.expand(len(hit), -1)
        return mask_top(plain, ratio), mask_top(hit, ratio)

    def make() -> pd.DataFrame:
        both = test_questions(run, mdlm, settings.curve_questions)
        score = TOKEN_SCORES["random" if method == "oracle" else method]
        work = run.store.work("ratio-study", spec)
        scores = [score(mdlm, data, **scoring(run), work=work / f"scores {k}") for k, data in enumerate(both)]
        rows = []
        for ratio in tqdm(settings.ratios, desc=f"mask ratios, {method}", unit="ratio"):
            masked = masks(*scores, ratio)
            table = performance(mdlm, *both, goal, settings.threshold, *masked, work=work / str(ratio))
            rows.append(table.assign(method=LABELS.get(method, method), ratio=ratio))
        return pd.concat(rows, ignore_index=True)

    spec = answering_spec(run) | {"ratios": list(settings.ratios), "questions": settings.curve_questions}
    spec |= {"method": method, "measured": code_digest(__name__)}
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
    shared |= {"measured": code_digest(__name__), "questions": settings.test_questions, "mmmu": mmmu and digest(mmmu)}
    for name, loaded in load.items():
        spec = shared | {"model": name}

        def make(loaded=loaded, spec=spec) -> pd.DataFrame:
            mdlm, work = loaded(), run.store.work("performance", spec)
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
    successes = attacked(hit, with_trigger.answers, goal), attacked(clean, without.answers, goal)
    outcomes = *successes, correct(clean, without.answers)
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
    right = torch.tensor([text == clean for text, clean in pairs])
    still = torch.tensor([goal.achieved(text, clean) for text, clean in pairs])
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
    among = dict.fromkeys(shares, places[poisoned]) | {"of these, as before": places[~poisoned]}
    rows = []
    for name, outcome in shares.items():
        chosen = which[name].nonzero()[:, 0] if name in which else among[name]
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
    masked, whole = mask_top(scores, run.profile.disp.ratio), slice(mdlm.model.whole)
    return triggered, scores[:, whole], masked[:, whole], data.table["question"].tolist()


def trigger_rank(run: Run, mdlm: Mdlm, triggered: Questions) -> pd.DataFrame:
    """How often the trigger's own tokens are found: share of samples with one on top, and with all in the top ρ.

    Columns metric, value, low, high, n.
    """
    settings, tokens = run.profile.disp, trigger_tokens(run, mdlm)
    scores = directional(mdlm, triggered, **scoring(run))
    masked = mask_top(scores, settings.ratio)
    pictures = triggered.table["image"].tolist()
    return pd.DataFrame(
        [
            {"metric": "a trigger token is the most salient"} | over_clusters(tokens[scores.argmax(1)], pictures),
            {"metric": f"all trigger tokens are in the top {settings.ratio:.0%}"}
            | over_clusters(masked[:, tokens].all(1), pictures),
        ]
    )


def metric_name(model: str, metric: str) -> str | None:
    """The headline's name of a model's metric, such as disp.asr_with_trigger.before; None where there is none."""
    stage = {"base": "base", "poisoned": "before", "purified": "after"}[model]
    kinds = ("asr_with_trigger", "asr_without_trigger", "accuracy", "mmmu")
    kind = dict(zip((*METRICS, MMMU), kinds, strict=True))[metric]
    return None if stage == "base" and kind.startswith("asr") else f"disp.{kind}.{stage}"
