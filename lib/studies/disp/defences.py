"""Every defence of the run's compromised MDLM, by name, and what it comes to.

    defended(run, "fine-pruning")       # a `Defended`, its model trained or from the store
    defence_rows(run, "fine-pruning")   # one row per metric

The mechanisms stand in `lib.defences`.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from lib.defences.attention_stealing import cleansight
from lib.defences.filters import bye, halve_by_attention
from lib.defences.fine_tuning import fine_tune_clean, fine_tune_further
from lib.defences.input_tests import prune_attention, strip
from lib.defences.interface import Defence, Defended, undefended
from lib.defences.masking import mask_at_inference
from lib.defences.pruning import fine_prune
from lib.defences.random_masks import halve_by_disagreement, vote
from lib.defences.registry import OWN
from lib.defences.self_purification import HALF
from lib.poisoning.targets import target
from lib.runtime.keys import code_digest
from lib.studies.attacks.mdlm import test_questions
from lib.studies.disp.defended import StoredDefender, defence_code, defender_of
from lib.studies.disp.mmmu import with_mmmu
from lib.studies.disp.outcomes import judged
from lib.studies.disp.purification import FINE_TUNING, answering_spec, purification_spec, purified_mdlm
from lib.studies.run import Run, with_settings
from lib.studies.sources import digest


def purifying(defence: Defence) -> Defence:
    """Declares that what a defence comes to depends on the purified set, and not on the compromised model alone."""
    defence.spec = purification_spec
    return defence


@purifying
def stored_disp(defender: StoredDefender) -> Defended:
    """`lib.defences.self_purification.disp`, with the profile's rounds and start, from the store."""
    return Defended(purified_mdlm(with_settings(defender.run, "disp", {"saliency": defender.score}))[0])


@purifying
def stored_filtered(defender: StoredDefender) -> Defended:
    """`lib.defences.self_purification.filtered_disp`, likewise."""
    run = with_settings(defender.run, "disp", {"keep": HALF})
    return stored_disp(replace(defender, run=run))


@purifying
def stored_random_purification(defender: StoredDefender) -> Defended:
    """`lib.defences.self_purification.random_purification`, likewise."""
    return stored_disp(replace(defender, score="random"))


FILTERED = "DiSP, surer half"
DEFENCES: dict[str, Defence] = {
    "no defence": undefended,
    "DiSP": stored_disp,
    FILTERED: stored_filtered,
    "masking at inference": mask_at_inference,
    "fine-tuning on a clean 5 %": fine_tune_clean,
    "fine-tuning on everything again": fine_tune_further,
    "fine-pruning": fine_prune,
    "random-mask purification": stored_random_purification,
    "BYE": bye,
    "BYE's score, half kept": halve_by_attention,
    "disagreement, half kept": halve_by_disagreement,
    "attention pruning": prune_attention,
    "CleanSight": cleansight,
    "STRIP-like": strip,
    "vote of random masks": vote,
}


def named(name: str) -> Defence:
    """The defence of that name, ours or registered."""
    return (OWN | DEFENCES)[name]


def defended(run: Run, name: str) -> Defended:
    """The run's compromised model under the defence of that name, ours or registered."""
    defence = named(name)
    return defence(defender_of(run, defence))


def defence_rows(run: Run, name: str) -> pd.DataFrame:
    """The defence on `disp.test_questions` test questions, and on MMMU where the profile names it, from the store if it
    was measured before.

    Columns defence, knows, metric (`METRICS`, `MMMU`), value, low, high, n, interval (95 %).
    """
    settings, goal = run.profile.disp, target(run.profile.disp.target)

    def make() -> pd.DataFrame:
        made = defended(run, name)
        both, work = test_questions(run, made.mdlm, settings.test_questions), run.store.work("defence", spec)
        answers = [made.answer(data, settings.threshold, work / str(k)) for k, data in enumerate(both)]
        table = with_mmmu(run, made.mdlm, judged(*answers, *both, goal), work / "mmmu", made.answer)
        return pd.DataFrame({"defence": name, "knows": made.knows}, table.index).join(table)

    spec = defence_spec(run, name)
    return run.store.table("defence", spec, make)


def defence_spec(run: Run, name: str) -> dict:
    """What the rows of that defence depend on."""
    settings, mmmu = run.profile.disp, run.profile.data.mmmu
    spec = getattr(named(name), "spec", answering_spec)(run)
    spec |= settings.model_dump(mode="json", include=FINE_TUNING) | defence_code(named(name))
    spec |= {"name": name, "questions": settings.test_questions, "measured": code_digest(__name__)}
    return spec | {"mmmu": mmmu and digest(mmmu)}
