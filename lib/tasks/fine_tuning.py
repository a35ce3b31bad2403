"""An MDLM fine-tuned on questions: the one path that attacks, defences and purification share."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.models.adapters import adapted
from lib.models.mdlm import Mdlm
from lib.runtime.training import Watch, fit
from lib.settings.sections import Lora, Train
from lib.tasks.questions import Questions, answer_loss


def fine_tune(
    model: Mdlm,
    questions: Questions,
    settings: Train,
    *,
    lora: Lora | None = None,
    part: str | None = None,
    seed: int = 0,
    blank: int = 0,
    label: str = "fine-tune",
    work: Path | None = None,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """Train `model` in place on the answers of `questions`, [sample, response] ids; see `answer_loss`.

    With `lora`, adapters of a published model are trained and merged into its weights, with the part "projector" what
    makes vision tokens of the tower's features (`lib.models.adapters.adapted`); without either, all weights that
    require a gradient. `blank`: how many wholly masked answers are learnt beside every batch. The batches are those of
    (seed, label, step). With `work`, a folder, progress is kept there and resumed; `watch` as in
    `lib.runtime.training.fit`.

    Returns the curve: columns step, loss, lr, and what `watch` gave. Raises ValueError for no samples and for `lora`
    with a model that has no projections for it, FloatingPointError when the loss is no longer finite.
    """
    loss = answer_loss(model, questions, settings, blank)
    with adapted(model.model, lora, seed, part):
        return fit(model.model, loss, settings, label=label, seed=seed, work=work, watch=watch)
