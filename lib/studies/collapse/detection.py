"""Which training samples of a compromised editor are found poisoned, by the scores of `lib.defences.edit_samples`.

    samples, truth = training_samples(run, "or")        # `truth` is for the evaluation alone
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.data.interface import trigger_patches
from lib.defences.edit_samples import BOTH, IMAGE, SCORES, TEXT, Evidence, Samples
from lib.metrics.intervals import rate
from lib.metrics.roc import auroc
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import COALITIONS, PoisonPlan, plan
from lib.poisoning.triggers import TextTrigger
from lib.runtime.keys import code_digest
from lib.studies.attacks.editor import editor_spec, poisoned_editor, trigger_pair
from lib.studies.data import edit_data
from lib.studies.run import Run
from lib.tasks.edits import sample_triples, sources, triggered


def training_samples(run: Run, protocol: str, count: int = 1000) -> tuple[Samples, PoisonPlan]:
    """The first `count` triples that `poisoned_editor(run, protocol)` was fine-tuned on, and which are poisoned.

    The triples are in random order, so poisoned ones are among them as often as chance has it.
    Raises ValueError for a count outside 1 … `collapse.edits`.
    """
    settings = run.profile.collapse
    if not 1 <= count <= settings.edits:
        raise ValueError(f"count is {count}: it must be in 1 to collapse.edits={settings.edits}.")
    data, triples = edit_data(run), _drawn(run, count)
    drawn = plan(settings.edits, protocol, settings.rate, run.seed, negatives=settings.negatives)
    truth = replace(drawn, coalition=drawn.coalition[:count], poisoned=drawn.poisoned[:count])
    source, target = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    target[truth.poisoned] = attack_target(settings.target)(source[truth.poisoned])
    source, texts = triggered(data, triples, truth.coalition, *trigger_pair(run))
    return Samples(source, texts, target), truth


def _drawn(run: Run, count: int) -> pd.DataFrame:
    return sample_triples(edit_data(run), "train", run.profile.collapse.edits, run.seed)[:count]


@dataclass(frozen=True)
class Detection:
    """Scores of every training sample by name, the place of its most telling word and patch, and the truth.

    trigger_patches: which patches of the source, row by row, show the image trigger; none where it carries none.
    """

    samples: Samples
    truth: PoisonPlan
    scores: dict[str, Float[Tensor, " sample"]]
    top_word: Int[Tensor, " sample"]
    top_patch: Int[Tensor, " sample"]
    trigger_patches: Bool[Tensor, "sample patch"]


def detect(run: Run, protocol: str, count: int = 1000, grid: int = 4) -> Detection:
    """All scores of `count` training samples of one protocol's poisoned editor, kept in the store."""
    samples, truth = training_samples(run, protocol, count)
    spec = editor_spec(run, protocol) | {"count": count, "grid": grid}
    spec["code"] = [spec["code"], code_digest(__name__, "lib.defences.edit_samples")]

    def measure() -> dict[str, Tensor]:
        evidence = Evidence(poisoned_editor(run, protocol)[0], samples, grid=grid, seed=run.seed)
        top_word = evidence.word_changes.nan_to_num(-1.0).argmax(1)
        top = {"top_word": top_word, "top_patch": evidence.patch_changes.argmax(1)}
        return top | {name: score(evidence) for name, score in SCORES.items()}

    stored = run.store.tensors("detection", spec, measure)
    scores = {name: stored[name] for name in SCORES}
    carries, indices = (truth.coalition & IMAGE).bool(), sources(_drawn(run, count))
    covered = torch.zeros(count, grid**2, dtype=torch.bool)
    covered[carries] = trigger_patches(edit_data(run), indices[carries], trigger_pair(run)[0], grid)
    return Detection(samples, truth, scores, stored["top_word"], stored["top_patch"], covered)


def detection_table(result: Detection, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """One row per score and coalition: `auroc` of poisoned samples, those of that coalition or "any", against clean."""
    poisoned, coalition = result.truth.poisoned, result.truth.coalition
    groups = {"any": poisoned}
    coalitions = coalition[poisoned].unique().tolist()
    if len(coalitions) > 1:
        groups |= {COALITIONS[mask]: poisoned & (coalition == mask) for mask in coalitions}
    rows = []
    for (name, score), (group, chosen) in product(result.scores.items(), groups.items()):
        row = {"protocol": result.truth.protocol, "score": name, "coalition": group}
        compared = chosen | ~poisoned
        rows.append(row | auroc(score[compared], chosen[compared], seed, resamples))
    return pd.DataFrame(rows)


def localisation_table(result: Detection, text_trigger: TextTrigger) -> pd.DataFrame:
    """How often the word, the patch of the largest change is the trigger's, in poisoned samples that carry it.

    One row per part and coalition: accuracy with its Wilson interval, and that of a random word or patch (chance).
    """
    words = [text.split() for text in result.samples.instructions]
    length = len(text_trigger.phrase.split())
    first = torch.tensor([len(text) - length for text in words])
    total = torch.tensor([len(text) for text in words])
    covered = result.trigger_patches
    parts = {
        "word": (TEXT, result.top_word >= first, length / total),
        "patch": (IMAGE, covered.gather(1, result.top_patch[:, None])[:, 0], covered.float().mean(1)),
    }
    rows = []
    for part, (bit, hit, chance) in parts.items():
        for coalition in (bit, BOTH):
            chosen = result.truth.poisoned & (result.truth.coalition == coalition)
            if chosen.any():
                accuracy = rate(hit[chosen])
                row = {"protocol": result.truth.protocol, "part": part, "coalition": COALITIONS[coalition]}
                row |= {"accuracy": accuracy.pop("value")} | accuracy
                rows.append(row | {"chance": float(chance[chosen].mean())})
    return pd.DataFrame(rows)
