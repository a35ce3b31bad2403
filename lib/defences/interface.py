"""What a defender holds, and what a defence makes of it.

    defended = fine_prune(Defender(suspect=load, training_set=samples, …))
    defended.answer(questions, threshold=0.9)

A defence gets a compromised model and its poisoned fine-tuning set. Some know clean data too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from lib.models.mdlm import Mdlm
from lib.settings.sections import DISP_ESTIMATOR, Estimator, Lora, Train
from lib.tasks.fine_tuning import fine_tune
from lib.tasks.questions import Questions, answer

NOTHING, CLEAN_DATA = "nothing", "clean data"


@dataclass(frozen=True, kw_only=True)
class Defender:
    """A suspect model, the samples that it was fine-tuned on, and settings of what may be done with them.

    suspect, base:  load the suspect model and the one that it was fine-tuned from. Each call gives another copy, since
                    training changes it.
    training_set, clean_share:  the model's fine-tuning set, poisoned as it may be, and a few samples known to be clean,
                    as questions to the model that they get. Made only when a defence asks for them.
    threshold, batch:  of decoding; samples scored at once.
    ratio, score, estimator, keep:  as `self_purify` takes them.
    purify, train:  steps of fine-tuning a model further, and of fine-tuning the base model.
    work:           a folder for the progress of what takes long.
    """

    suspect: Callable[[], Mdlm]
    training_set: Callable[[Mdlm], Questions]
    threshold: float
    purify: Train
    clean_share: Callable[[Mdlm], Questions] | None = None
    base: Callable[[], Mdlm] | None = None
    train: Train | None = None
    ratio: float = 0.1
    score: str = "directional"
    estimator: Estimator = DISP_ESTIMATOR
    batch: int = 128
    keep: float = 1.0
    lora: Lora | None = None
    part: str | None = None
    seed: int = 0
    work: Path | None = None

    def trained(self, done: str, settings: Train, begin: Callable[[], tuple[Mdlm, Questions]]) -> Mdlm:
        """The model that `begin()` gives, fine-tuned on the samples that it gives. `done` says how, in a few words."""
        model, questions = begin()
        work = self.work and self.work / done
        how = {"lora": self.lora, "part": self.part, "seed": self.seed}
        fine_tune(model, questions, settings, **how, label=f"MDLM, {done}", work=work)
        return model


@dataclass(frozen=True)
class Defended:
    """A model, and what the defence does with questions before it answers them.

    knows: what the defender has beside the compromised model and its training set: `NOTHING` or `CLEAN_DATA`.
    mask:  vision tokens of each question to hide; None: none.
    flag:  whether each question is taken for a triggered one and refused; None: none is.
    ask:   how questions are answered, `ask(questions, threshold, work)`; None: as the model answers them.
    """

    mdlm: Mdlm
    knows: str = NOTHING
    mask: Callable[[Questions], Bool[Tensor, "sample vision"]] | None = None
    flag: Callable[[Questions], Bool[Tensor, " sample"]] | None = None
    ask: Callable[[Questions, float, Path | None], list[str]] | None = None

    def answer(self, data: Questions, threshold: float, work: Path | None = None) -> list[str]:
        """Answers as texts. That of a refused question is empty: no success of the attack, and not correct.

        With `work`, a folder, they are kept there batch by batch.
        """
        if self.ask:
            answers = self.ask(data, threshold, work)
        else:
            answers = answer(self.mdlm, data, threshold, masked=self.mask(data) if self.mask else None, work=work)
        flags = self.flag(data).tolist() if self.flag else [False] * len(data)
        return ["" if flagged else text for text, flagged in zip(answers, flags, strict=True)]


Defence = Callable[[Defender], Defended]


def undefended(defender: Defender) -> Defended:
    """The suspect model as it is."""
    return Defended(defender.suspect())
