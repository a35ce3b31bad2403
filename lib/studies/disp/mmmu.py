"""MMMU as a measure of what a model still can, where the profile names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lib.metrics.intervals import rate
from lib.metrics.mmmu import score
from lib.models.mdlm import Mdlm
from lib.studies.questions import mmmu_data
from lib.studies.run import Run
from lib.tasks.questions import answer, questions

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
    with _room(mdlm, data.table["question"].tolist(), run.profile.data.mmmu.answer_tokens):
        asked = questions(mdlm, data, data.table.assign(answer=""))
        answers = ask(asked, run.profile.disp.threshold, work=work)
    return score(data.table, answers, run.seed)


@contextmanager
def _room(mdlm: Mdlm, texts: list[str], answer_tokens: int | None) -> Iterator[None]:
    """Within, a published model's prompt is as long as the longest text, and answers have that many tokens."""
    config = mdlm.model.config
    before = config.prompt_length, config.response_length
    if config.model_type != "mdlm":
        ids = mdlm.tokenizer(texts, add_special_tokens=False)["input_ids"]
        config.prompt_length = max(before[0], *map(len, ids))
    config.response_length = answer_tokens or before[1]
    try:
        yield
    finally:
        config.prompt_length, config.response_length = before
