"""The suspect model fine-tuned further, on clean samples or on everything again."""

from __future__ import annotations

from lib.defences.interface import CLEAN_DATA, Defended, Defender
from lib.models.mdlm import Mdlm
from lib.tasks.questions import Questions


def fine_tune_clean(defender: Defender) -> Defended:
    """Fine-tune on the clean share."""

    def begin() -> tuple[Mdlm, Questions]:
        mdlm = defender.suspect()
        return mdlm, defender.clean_share(mdlm)

    return Defended(defender.trained("fine-tuned on the clean share", defender.purify, begin), CLEAN_DATA)


def fine_tune_further(defender: Defender) -> Defended:
    """Fine-tune on everything again, poisoned as it is: what DiSP's training would do without its answers."""

    def begin() -> tuple[Mdlm, Questions]:
        mdlm = defender.suspect()
        return mdlm, defender.training_set(mdlm)

    return Defended(defender.trained("fine-tuned on everything again", defender.purify, begin))
