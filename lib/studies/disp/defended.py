"""A run as a defender of its compromised MDLM: samples made when a defence asks for them, what it trains kept.

Some defences know clean data: `CLEAN_SHARE` of the fine-tuning set as it was before the attack. What they train takes
the steps of `disp.purify`, as DiSP does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lib.defences.interface import Defence, Defender
from lib.models.mdlm import Mdlm
from lib.runtime.keys import code_digest, registered
from lib.settings.sections import Train
from lib.studies.attacks.mdlm import mdlm_tuning, poisoned_mdlm, poisoned_training_set, training_questions
from lib.studies.checkpoints import FineTuning, fine_tuned
from lib.studies.disp.purification import answering_spec
from lib.studies.models import base_mdlm, made_mdlm
from lib.studies.run import Run
from lib.tasks.questions import Questions, answer_loss, draw_rows, questions

CLEAN_SHARE = 0.05  # of the fine-tuning set, known to be clean; chosen before any defence was measured


@dataclass(frozen=True, kw_only=True)
class StoredDefender(Defender):
    """A `Defender` with the settings and models of a run, for one defence, whose trained models are in the store."""

    run: Run
    defence: Defence

    def trained(self, done: str, settings: Train, begin: Callable[[], tuple[Mdlm, Questions]]) -> Mdlm:
        """As `Defender.trained`; `begin` is called only where the store has no such model yet."""
        run, spec = self.run, answering_spec(self.run) | defence_code(self.defence)
        spec |= {"done": done, "fine-tuning": settings.model_dump(mode="json"), "trained": code_digest(__name__)}

        def tuning() -> FineTuning:
            mdlm, data = begin()
            facts = {"samples": len(data), "seed": run.seed}
            return mdlm_tuning(run, mdlm, answer_loss(mdlm, data, settings), facts)

        text = {"title": "Defended model", "told": f"A defence was tried on it: it was {done}."}
        folder = fine_tuned(run, "defended-mdlm", spec, tuning, settings, f"MDLM, {done}", **text)
        return made_mdlm(run.profile, str(folder / "mdlm"), run.device)


def defender_of(run: Run, defence: Defence) -> StoredDefender:
    """What the run's defender holds."""
    settings = run.profile.disp
    return StoredDefender(
        run=run,
        defence=defence,
        suspect=lambda: poisoned_mdlm(run)[0],
        training_set=partial(poisoned_training_set, run),
        clean_share=partial(clean_share, run),
        base=lambda: base_mdlm(run.profile, run.device),
        threshold=settings.threshold,
        ratio=settings.ratio,
        score=settings.saliency,
        estimator=settings.estimator,
        batch=settings.batch,
        keep=settings.keep,
        purify=settings.purify,
        train=settings.train,
        lora=run.profile.models.lora,
        part=run.profile.models.part,
        seed=run.seed,
    )


def defence_code(defence: Defence) -> dict:
    """What a defence contributes to a key: its own source, and what it uses of the library."""
    module = defence.__module__
    own = {"defended": code_digest(module)} if module.startswith("lib.") else {}
    return {"defence": registered(defence)} | own


def clean_share(run: Run, mdlm: Mdlm) -> Questions:
    """`CLEAN_SHARE` of the fine-tuning set, drawn at random, without trigger and with the true answers."""
    vqa, table, _, _ = training_questions(run)
    return questions(mdlm, vqa, draw_rows(table, round(CLEAN_SHARE * len(table)), run.seed, "clean share"))
