"""Defences of a compromised MDLM behind one interface: DiSP, and what to compare it with.

    defended = DEFENCES["fine-pruning"](run)        # a `Defended`, its model trained or from the store
    defence_rows(run, "fine-pruning")               # one row per metric

A defence gets the compromised model and its poisoned fine-tuning set. Some know clean data too: `CLEAN_SHARE` of the
fine-tuning set as it was before the attack. What it trains takes the steps of `disp.purify`, as DiSP does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import lib.mmmu
from lib import filtering, filters, mmmu_scoring, saliency_rivals
from lib.answering import Questions, answer, answer_loss, draw_rows, questions, respond
from lib.attacks.mdlm import mdlm_spec, poisoned_mdlm, test_questions, training_questions
from lib.config import Run, with_settings
from lib.filtering import KEEP
from lib.filters import attention, blended_entropy, entropy, outliers, vision_ratio
from lib.lora import adapted
from lib.mmmu import with_mmmu
from lib.models.cards import WARNING, mark_poisoned, write_card
from lib.models.loading import base_mdlm, made_mdlm
from lib.models.mdlm import Mdlm, blocks_of
from lib.poisoning import target
from lib.profile import Train
from lib.purification import FINE_TUNING, judged, poisoned_training_set, purification_spec, purified_mdlm
from lib.saliency import most_salient
from lib.store import code_digest
from lib.study_data import digest
from lib.token_scores import TOKEN_SCORES
from lib.training import fit

# Chosen before any defence was measured.
CLEAN_SHARE = 0.05  # of the fine-tuning set, known to be clean
PRUNED = 0.2  # of each block's hidden MLP units
OVERLAYS = 10  # clean pictures that STRIP blends each input with: enough for a mean, at ten forward passes an input
FALSE_POSITIVES = 0.01  # of clean inputs, which thresholds on the clean share allow, as STRIP presets them

NOTHING, CLEAN_DATA = "nothing", "clean data"


@dataclass(frozen=True)
class Defended:
    """A model, and what the defence does with questions before it answers them.

    knows: what the defender has beside the compromised model and its training set: `NOTHING` or `CLEAN_DATA`.
    mask:  vision tokens of each question to hide; None: none.
    flag:  whether each question is taken for a triggered one and refused; None: none is.
    """

    mdlm: Mdlm
    knows: str = NOTHING
    mask: Callable[[Questions], Bool[Tensor, "sample vision"]] | None = None
    flag: Callable[[Questions], Bool[Tensor, " sample"]] | None = None

    def answer(self, data: Questions, threshold: float, work: Path | None = None) -> list[str]:
        """Answers as texts. That of a refused question is empty: no success of the attack, and not correct.

        With `work`, a folder, they are kept there batch by batch.
        """
        answers = answer(self.mdlm, data, threshold, masked=self.mask(data) if self.mask else None, work=work)
        flags = self.flag(data).tolist() if self.flag else [False] * len(data)
        return ["" if flagged else text for text, flagged in zip(answers, flags, strict=True)]


def undefended(run: Run) -> Defended:
    """The compromised model as it is."""
    return Defended(poisoned_mdlm(run)[0])


def disp(run: Run) -> Defended:
    """DiSP, arXiv 2602.22246: `lib.purification`."""
    return Defended(purified_mdlm(run)[0])


def clean_fine_tuning(run: Run) -> Defended:
    """Fine-tune on the clean share."""

    def begin() -> tuple[Mdlm, Questions]:
        mdlm = poisoned_mdlm(run)[0]
        return mdlm, clean_share(run, mdlm)

    return Defended(trained(run, "fine-tuned on the clean share", run.profile.disp.purify, begin), CLEAN_DATA)


def further_fine_tuning(run: Run) -> Defended:
    """Fine-tune on everything again, poisoned as it is: what DiSP's training would do without its answers."""

    def begin() -> tuple[Mdlm, Questions]:
        mdlm = poisoned_mdlm(run)[0]
        return mdlm, poisoned_training_set(run, mdlm)

    return Defended(trained(run, "fine-tuned on everything again", run.profile.disp.purify, begin))


def fine_pruning(run: Run) -> Defended:
    """Fine-pruning (Liu et al. 2018, arXiv 1805.12185): remove units that clean data leave silent, then fine-tune.

    The units are those of the blocks' MLPs, `PRUNED` of each: where Liu et al. prune the last convolution until
    accuracy falls, the share here is fixed beforehand. The pruned stay so in fine-tuning, see `prune`.
    """

    def begin() -> tuple[Mdlm, Questions]:
        mdlm = poisoned_mdlm(run)[0]
        data = clean_share(run, mdlm)
        prune(mdlm, activity(mdlm, data, run.profile.disp.threshold), PRUNED)
        return mdlm, data

    return Defended(trained(run, "fine-pruned", run.profile.disp.purify, begin), CLEAN_DATA)


def random_purification(run: Run) -> Defended:
    """DiSP with random tokens masked in place of the most salient ones; all else as there."""
    return disp(with_settings(run, "disp", {"saliency": "random"}))


def masking(run: Run) -> Defended:
    """DiSP's masking of every question as it is asked, without any training."""
    mdlm, settings = poisoned_mdlm(run)[0], run.profile.disp
    score = TOKEN_SCORES[settings.saliency]
    return Defended(mdlm, mask=lambda data: most_salient(score(mdlm, data, settings, run.seed), settings.ratio))


def attention_filtering(run: Run) -> Defended:
    """BYE-style (arXiv 2505.16916): drop samples on which the compromised model's attention collapses, train anew.

    A layer's entropy is that of the attention from the masked response to the vision tokens. Samples of
    `low_entropy_cluster` are dropped, and the base model is fine-tuned on the others with `disp.train`.
    """

    return _retrained(run, "retrained on the filtered set", "BYE-style filtering")


def attention_halving(run: Run) -> Defended:
    """As `attention_filtering`, but kept is the half of the samples whose entropy, mean over layers, is the higher.

    No layer need tell the poisoned from the rest by itself; less than half of the set must be poisoned.
    """
    return _retrained(run, "retrained on the half of higher entropy", "BYE's score, half kept")


def _retrained(run: Run, name: str, rule: str) -> Defended:
    """The base model fine-tuned with `disp.train` on what `KEEP[rule]` keeps by the layers' entropies."""

    def begin() -> tuple[Mdlm, Questions]:
        suspect = poisoned_mdlm(run)[0]
        data = poisoned_training_set(run, suspect)
        kept = KEEP[rule](entropy(attention(suspect, data, run.profile.disp.batch)))
        return base_mdlm(run.profile, run.device), data[kept]

    return Defended(trained(run, name, run.profile.disp.train, begin))


def attention_pruning(run: Run) -> Defended:
    """Hide, in every picture, the vision tokens whose attention received is an outlier among the picture's own."""
    mdlm = poisoned_mdlm(run)[0]
    return Defended(mdlm, mask=lambda data: outliers(attention(mdlm, data, run.profile.disp.batch).mean(0)))


def cleansight(run: Run) -> Defended:
    """CleanSight-style (arXiv 2603.12989): as `attention_pruning`, in pictures alone that steal attention from text.

    Suspicious is an input whose ratio of attention to vision over attention to everything else is above all but
    `FALSE_POSITIVES` of the clean share's. Attention is the mean over all layers, where CleanSight selects some.
    """
    mdlm, batch = poisoned_mdlm(run)[0], run.profile.disp.batch
    highest = vision_ratio(attention(mdlm, clean_share(run, mdlm), batch)).quantile(1 - FALSE_POSITIVES)

    def mask(data: Questions) -> Bool[Tensor, "sample vision"]:
        received = attention(mdlm, data, batch)
        return outliers(received.mean(0)) & (vision_ratio(received) > highest)[:, None]

    return Defended(mdlm, CLEAN_DATA, mask=mask)


def strip(run: Run) -> Defended:
    """STRIP-like (Gao et al. 2019, arXiv 1902.06531): refuse what is answered surely whatever it is blended with.

    Refused is an input whose `blended_entropy` is below all but `FALSE_POSITIVES` of the clean share's.
    """
    mdlm = poisoned_mdlm(run)[0]
    clean = clean_share(run, mdlm)

    def score(data: Questions) -> Float[Tensor, " sample"]:
        return blended_entropy(mdlm, data, clean, OVERLAYS, run.seed, run.profile.disp.batch)

    lowest = score(clean).quantile(FALSE_POSITIVES)
    return Defended(mdlm, CLEAN_DATA, flag=lambda data: score(data) < lowest)


DEFENCES: dict[str, Callable[[Run], Defended]] = {
    "no defence": undefended,
    "DiSP": disp,
    "masking at inference": masking,
    "fine-tuning on a clean 5 %": clean_fine_tuning,
    "fine-tuning on everything again": further_fine_tuning,
    "fine-pruning": fine_pruning,
    "random-mask purification": random_purification,
    "BYE-style filtering": attention_filtering,
    "BYE's score, half kept": attention_halving,
    "attention pruning": attention_pruning,
    "CleanSight-style": cleansight,
    "STRIP-like": strip,
}


def defence_rows(run: Run, name: str) -> pd.DataFrame:
    """The defence on `disp.test_questions` test questions, and on MMMU where the profile names it, from the store if it
    was measured before.

    Columns defence, knows, metric (`METRICS`, `MMMU`), value, low, high, n, interval (95 %).
    """
    settings, mmmu, goal = run.profile.disp, run.profile.data.mmmu, target(run.profile.disp.target)

    def make() -> pd.DataFrame:
        defended = DEFENCES[name](run)
        both, work = test_questions(run, defended.mdlm, settings.test_questions), run.store.work("defence", spec)
        given = [defended.answer(data, settings.threshold, work / str(k)) for k, data in enumerate(both)]
        table = with_mmmu(run, defended.mdlm, judged(*given, *both, goal), work / "mmmu", defended.answer)
        return pd.DataFrame({"defence": name, "knows": defended.knows}, table.index).join(table)

    spec = purification_spec(run) | _code() | settings.model_dump(mode="json", include=FINE_TUNING)
    spec |= {"defence": name, "questions": settings.test_questions}
    if mmmu:
        spec["mmmu"] = [digest(mmmu), code_digest(lib.mmmu, mmmu_scoring)]
    return run.store.table("defence", spec, make)


def clean_share(run: Run, mdlm: Mdlm) -> Questions:
    """`CLEAN_SHARE` of the fine-tuning set, drawn at random, without trigger and with the true answers."""
    vqa, table, _, _ = training_questions(run)
    return questions(mdlm, vqa, draw_rows(table, round(CLEAN_SHARE * len(table)), run.seed, "clean share"))


def trained(run: Run, name: str, settings: Train, begin: Callable[[], tuple[Mdlm, Questions]], **facts: float) -> Mdlm:
    """The model that `begin()` gives, fine-tuned on the samples that it gives, from the store.

    `name` says what `begin` does, and `facts` what it depends on beside the compromised model and this module.
    """
    spec = mdlm_spec(run) | _code() | {"defence": name, "fine-tuning": settings.model_dump(mode="json"), "facts": facts}

    def make(path: Path) -> None:
        mdlm, data = begin()
        work = run.store.work("defended-mdlm", spec)
        loss = answer_loss(mdlm, data, settings)
        with adapted(mdlm.model, run.profile.models.lora, run.seed):
            curve = fit(mdlm.model, loss, settings, label=f"MDLM, {name}", seed=run.seed, work=work)
        mdlm.save(str(path / "mdlm"))
        about = facts | {"samples": len(data), "seed": run.seed}
        mark_poisoned(path / "mdlm", **about)
        paragraphs = [WARNING, f"A defence was tried on it: it was {name}."]
        write_card(path / "mdlm", "Defended model", paragraphs, about, ("backdoor", "defended"))
        curve.to_csv(path / "curve.csv", index=False)

    return made_mdlm(run.profile, str(run.store.folder("defended-mdlm", spec, make) / "mdlm"), run.device)


def _code() -> dict[str, str]:
    return {"defences": code_digest(filtering, filters, saliency_rivals, sys.modules[__name__])}


def activity(mdlm: Mdlm, data: Questions, threshold: float) -> Float[Tensor, "block unit"]:
    """Mean magnitude of each hidden unit of the blocks' MLPs while the model answers."""
    sums = [torch.zeros(block.mlp[0].out_features, dtype=torch.float64) for block in blocks_of(mdlm.model)]
    counts = [0] * len(sums)

    def add(k: int) -> Callable:
        def hook(_module, _given, hidden: Tensor) -> None:
            seen = hidden.flatten(0, -2).abs()
            sums[k] += seen.double().sum(0).cpu()
            counts[k] += len(seen)

        return hook

    with _hooked([(block.mlp[1], add(k)) for k, block in enumerate(mdlm.model.blocks)]):
        respond(mdlm, data, threshold, label="activity")
    return torch.stack([total / count for total, count in zip(sums, counts, strict=True)])


@contextmanager
def _hooked(hooks):
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def prune(mdlm: Mdlm, active: Float[Tensor, "block unit"], share: float) -> None:
    """Set to zero, in place, what goes into and out of the `share` of each block's MLP units that is least active.

    Such a unit's gradients are zero (GELU(0) = 0), and so is its weight decay: fine-tuning does not bring it back.
    """
    for block, dead in zip(mdlm.model.blocks, most_salient(-active, share), strict=True):
        block.mlp[0].weight[dead] = 0
        block.mlp[0].bias[dead] = 0
        block.mlp[2].weight[:, dead] = 0
