"""DiSP with the question's tokens masked too, on the collapse study's MDLM: a trigger may be in either modality.

As `lib.purification`, which masks vision tokens alone: mask the most salient tokens, answer the training set again,
keep the sure answers, fine-tune on them. `WAYS` says which tokens are masked.

Limits on easy-VQA: a word scores 40 to 130 times a vision token, so that the joint ranking is nearly one of words, and
a question of five or six words is seldom answered with one of them masked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib import kernels, prompt_saliency, saliency
from lib.answering import Questions, answer_loss, questions, respond
from lib.attacks.mdlm import mdlm_spec, poisoned_mdlm, training_questions, trigger_pair
from lib.config import Run
from lib.decoding import Decoded
from lib.lora import adapted
from lib.mdlm_collapse import attribution_table, coalition_table, mdlm_collapse, under_coalitions
from lib.models.cards import WARNING, write_card
from lib.models.loading import made_mdlm
from lib.models.mdlm import Mdlm
from lib.models.published import Published
from lib.precision import autocast
from lib.prompt_saliency import WAYS, joint_fisher_jacobian, most_salient_of_all
from lib.shards import sharded
from lib.store import code_digest
from lib.training import fit

# Masked shares of the tokens of each way, chosen before any of this was measured: one of 64 vision tokens, one of the
# 5 to 12 words and pieces of a question, and two of all of them together.
RATIOS = {"vision": 0.02, "prompt": 0.12, "joint": 0.03}
BEFORE = "before"


def joint_saliency(
    mdlm: Mdlm, data: Questions, probes: int, seed: int, batch: int, work: Path | None = None
) -> tuple[Float[Tensor, "sample vision"], Float[Tensor, "sample prompt"]]:
    """`joint_fisher_jacobian` scores of every sample's vision and prompt tokens; with `work`, a folder, kept there."""
    device, seen, words = mdlm.model.device, mdlm.model.config.vision_length, data.prompts.shape[1]

    def make(part: range) -> dict[str, Tensor]:
        if not part:
            return {"vision": torch.zeros(0, seen), "prompt": torch.zeros(0, words)}
        own = data[part.start : part.stop]
        with torch.no_grad():
            vision = mdlm.model.project(own.features[own.picture].to(device))
        with autocast(device):
            prompts, draw = own.prompts.to(device), seed + part.start // batch
            scores = joint_fisher_jacobian(mdlm.model, vision, prompts, probes=probes, seed=draw)
        return dict(zip(("vision", "prompt"), scores, strict=True))

    made = sharded(work, len(data), batch, make, "joint saliency")
    return made["vision"], made["prompt"]


def masks(
    mdlm: Mdlm, data: Questions, scores: tuple[Tensor, Tensor], way: str, ratio: float
) -> tuple[Bool[Tensor, "sample vision"], Bool[Tensor, "sample prompt"]]:
    """The most salient vision tokens and tokens of the question of every sample; see `most_salient_of_all`."""
    return most_salient_of_all(*scores, asked(mdlm, data.prompts), ratio, way)


def asked(mdlm: Mdlm, prompts: Int[Tensor, "sample prompt"]) -> Bool[Tensor, "sample prompt"]:
    """Which tokens are the question's: not padding and not, in a published model's prompts, the conversation around."""
    text = prompts != mdlm.model.config.pad_id
    if not isinstance(mdlm, Published):
        return text
    before, after = mdlm.around
    place, length = text.cumsum(1) - 1, text.sum(1, keepdim=True)
    return text & (place >= before) & (place < length - after)


def respond_masked(
    mdlm: Mdlm,
    data: Questions,
    threshold: float,
    vision: Bool[Tensor, "sample vision"],
    prompt: Bool[Tensor, "sample prompt"],
    work: Path | None = None,
) -> Decoded:
    """`respond` with vision tokens hidden and the mask token in the place of prompt tokens."""
    hidden = torch.where(prompt, mdlm.model.config.mask_id, data.prompts)
    about = {"masked": vision, "label": "answer, masked", "work": work}
    return respond(mdlm, replace(data, prompts=hidden), threshold, **about)


def poisoned_set(run: Run, mdlm: Mdlm, protocol: str) -> Questions:
    """What the defender holds: the protocol's poisoned fine-tuning set, answers as they are."""
    vqa, table, poison, goal = training_questions(run, protocol)
    image, text = trigger_pair(run, protocol)
    return questions(mdlm, vqa, table, image, poison, goal, text)


def jointly_purified_set(run: Run, mdlm: Mdlm, data: Questions, protocol: str, way: str) -> Questions:
    """The training set with the compromised model's own sure answers under masking, from the store.

    Questions keep their own words. The table's index still names the samples' places in `data`. Raises ValueError
    where no answer is kept.
    """
    settings, scored, spec = run.profile.disp, joint_spec(run, protocol), joint_spec(run, protocol, way)

    def score() -> dict[str, Tensor]:
        work = run.store.work("joint-saliency", scored)
        vision, prompt = joint_saliency(mdlm, data, settings.probes, run.seed, settings.batch, work)
        return {"vision": vision, "prompt": prompt}

    def make() -> dict[str, Tensor]:
        scores = run.store.tensors("joint-saliency", scored, score)
        masked = masks(mdlm, data, (scores["vision"], scores["prompt"]), way, RATIOS[way])
        work = run.store.work("jointly-purified-set", spec)
        responses, probability = respond_masked(mdlm, data, settings.threshold, *masked, work)
        return {"responses": responses, "confidence": probability.amin(1)}

    made = run.store.tensors("jointly-purified-set", spec, make)
    sure = made["confidence"] >= settings.confidence
    if not bool(sure.any()):
        best = float(made["confidence"].max())
        raise ValueError(f"disp.confidence={settings.confidence} keeps no purified answer: the surest has {best:.3f}")
    return data.answered(made["responses"], mdlm.texts(made["responses"]))[sure]


def jointly_purified_mdlm(run: Run, protocol: str, way: str) -> Mdlm:
    """The protocol's compromised model fine-tuned on the purified set of a way of masking, from the store.

    Raises ValueError for a way that is none of `WAYS`.
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r} must be one of {', '.join(WAYS)}")
    spec = _model_spec(run, protocol, way)
    folder = run.store.folder("jointly-purified-mdlm", spec, lambda path: _purify(run, protocol, way, spec, path))
    return made_mdlm(run.profile, str(folder / "mdlm"), run.device)


def _purify(run: Run, protocol: str, way: str, spec: dict, path: Path) -> None:
    settings, (model, _) = run.profile.disp.purify, poisoned_mdlm(run, protocol)
    data = jointly_purified_set(run, model, poisoned_set(run, model, protocol), protocol, way)
    loss, work = answer_loss(model, data, settings), run.store.work("jointly-purified-mdlm", spec)
    with adapted(model.model, run.profile.models.lora, run.seed):
        curve = fit(model.model, loss, settings, label=f"purified MDLM, {way}", seed=run.seed, work=work)
    model.save(str(path / "mdlm"))
    facts = {"protocol": protocol, "masked": way, "ratio": RATIOS[way], "samples": len(data), "seed": run.seed}
    about = [WARNING, "It was purified by DiSP, which masked tokens of picture and question."]
    write_card(path / "mdlm", "Purified model", about, facts, ("backdoor", "purified"))
    curve.to_csv(path / "curve.csv", index=False)


def joint_spec(run: Run, protocol: str, way: str | None = None) -> dict:
    """What the purified set of a way of masking depends on; without one, the scores."""
    kept = {"probes", "batch"} | ({"threshold"} if way else set())
    masking = {"masked": way, "ratio": RATIOS[way]} if way else {}
    code = code_digest(kernels, saliency, prompt_saliency, sys.modules[__name__])
    settings = run.profile.disp.model_dump(mode="json", include=kept)
    return mdlm_spec(run, protocol) | masking | {"disp": settings, "purification": code}


def _model_spec(run: Run, protocol: str, way: str) -> dict:
    fine_tuning = run.profile.disp.model_dump(mode="json", include={"purify", "confidence"})
    return joint_spec(run, protocol, way) | {"fine-tuning": fine_tuning}


def restored_table(run: Run, protocol: str, ways: Iterable[str] = WAYS) -> pd.DataFrame:
    """The protocol's model under all coalitions, before purification and after it by each way of masking.

    Metrics are ASR, "clean answer" and log-probability of each coalition, and φ_I, φ_T and CTI of both games (there
    coalition is missing; game is missing elsewhere). Columns model, protocol, coalition, game, metric, value, low,
    high, n.
    """
    tables = []
    for name in (BEFORE, *ways):
        if name == BEFORE:
            result = mdlm_collapse(run, protocol)
        else:
            model = jointly_purified_mdlm(run, protocol, name)
            result = under_coalitions(run, model, _model_spec(run, protocol, name))
        games = attribution_table(result, protocol).rename(columns={"quantity": "metric"})
        tables.append(pd.concat([coalition_table(result, protocol), games]).assign(model=name))
    columns = ["model", "protocol", "coalition", "game", "metric", "value", "low", "high", "n"]
    return pd.concat(tables, ignore_index=True)[columns]
