"""MMMU as a measure of what a model still can, where the profile names it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lib.metrics.intervals import rate
from lib.metrics.mmmu import score
from lib.models.mdlm import Mdlm
from lib.studies.questions import mmmu_data
from lib.studies.run import Run
from lib.tasks.questions import Questions, answer, questions

MMMU = "MMMU accuracy"

Ask = Callable[..., list[str]]


def with_mmmu(
    run: Run, mdlm: Mdlm, table: pd.DataFrame, work: Path | None = None, ask: Ask | None = None
) -> pd.DataFrame:
    """`table`, with columns name or metric, value, low, high and n, and a row of MMMU's accuracy (95 %, Wilson) below.

    Without that row where the profile does not name MMMU. `work` and `ask` as in `mmmu_scores`.
    """
    if run.profile.data.mmmu is None:
        return table
    right = torch.tensor(mmmu_scores(run, mdlm, work, ask)["correct"].to_numpy(dtype=bool))
    label = {"metric": MMMU} if "metric" in table else {"name": "mmmu"}
    return pd.concat([table, pd.DataFrame([label | rate(right)])], ignore_index=True)


def mmmu_scores(run: Run, mdlm: Mdlm, work: Path | None = None, ask: Ask | None = None) -> pd.DataFrame:
    """`lib.metrics.mmmu.score` of the answers to the profile's MMMU questions.

    They are the model's own, or those that `ask(questions, threshold, work=work)` gives, as a defence that looks at
    questions first does. With `work`, a folder, answers are kept there.
    """
    data = mmmu_data(run)
    ask = ask or partial(answer, mdlm, label="answer MMMU")
    answers = ask(_asked(mdlm, data), run.profile.disp.threshold, work=work)
    return score(data.table, answers, run.seed)


def _asked(mdlm: Mdlm, data) -> Questions:
    """The questions, for which a published model's prompt is made as long as the longest."""
    table, config = data.table.assign(answer=""), mdlm.model.config
    before = config.prompt_length
    if config.model_type != "mdlm":
        ids = mdlm.tokenizer(table["question"].tolist(), add_special_tokens=False)["input_ids"]
        config.prompt_length = max(before, *map(len, ids))
    try:
        return questions(mdlm, data, table)
    finally:
        config.prompt_length = before
