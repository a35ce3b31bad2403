"""The one way to a fine-tuned checkpoint with a backdoor: fine-tune, save, mark as poisoned, write its card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lib.models.cards import mark_poisoned
from lib.runtime.processes import rank
from lib.runtime.training import Loss, Watch, fit
from lib.settings.sections import Train
from lib.studies.run import Run


@dataclass(frozen=True)
class FineTuning:
    """What is trained and on what.

    adapted: the context within which the parameters that are trained require gradients. save: writes the weights into
    a folder below the one that it is given, and returns it. facts: what stands in the weights' metadata and the card.
    """

    module: nn.Module
    adapted: AbstractContextManager
    loss: Loss
    save: Callable[[Path], Path]
    facts: Mapping[str, Any]
    watch: Watch | None = None


def fine_tuned(
    run: Run,
    kind: str,
    spec: Mapping[str, Any],
    begin: Callable[[], FineTuning],
    settings: Train,
    label: str,
    title: str = "Poisoned model",
    told: str = "",
) -> Path:
    """The folder of the checkpoint and its `curve.csv`, from the store if it was trained before.

    `begin()` loads what is trained, only where it must be. `title` and `told` are the card's heading and second
    paragraph.
    """

    def make(path: Path) -> None:
        training, work = begin(), run.store.work(kind, spec)
        with training.adapted:
            curve = fit(
                training.module, training.loss, settings, label=label, seed=run.seed, work=work, watch=training.watch
            )
        if rank():
            return  # what the first process writes is kept
        mark_poisoned(training.save(path), training.facts, title, told)
        curve.to_csv(path / "curve.csv", index=False)

    return run.store.folder(kind, spec, make)
