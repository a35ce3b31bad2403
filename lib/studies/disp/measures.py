"""Whether cheap masking is a matter of the measure: what the base model still knows of faces, asked in two ways.

Ten facts of a description must be seen, each; a question of yes or no has two answers to choose from, as MMMU's few
have, and the likelier one can be told without looking.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from lib.figures.panels import bands
from lib.figures.style import Figure, counts, require
from lib.metrics.facts import DESCRIPTION, right_parts
from lib.metrics.intervals import over_clusters
from lib.models.mdlm import Mdlm
from lib.runtime.keys import code_digest
from lib.saliency.by_name import TOKEN_SCORES
from lib.saliency.masking import mask_top
from lib.studies.base_models.quality import guessed
from lib.studies.data import data_spec
from lib.studies.disp.figures import RATIO, over_pictures
from lib.studies.disp.outcomes import LABELS
from lib.studies.disp.purification import scoring
from lib.studies.models import base_mdlm, base_spec
from lib.studies.questions import question_data
from lib.studies.run import Run
from lib.tasks.questions import Questions, answer, draw_rows, questions

CHOICE = "yes/no"
MEASURES = {DESCRIPTION: "facts of descriptions", CHOICE: "multiple choice (yes or no)"}
METHODS = ("directional", "random")
COLUMNS = ["measure", "method", "ratio", "value", "low", "high", "n", "interval", "relative", "blind"]


def clean_measures(run: Run) -> pd.DataFrame:
    """Share right of each of MEASURES when the base model's tokens are masked, `disp.curve_questions` test questions of
    each, from the store; no rows where the data are no faces.

    Columns COLUMNS. relative: to nothing masked. blind: the best answer that never looks, to choices alone.
    """
    if run.profile.data.questions is not None:
        return pd.DataFrame(columns=COLUMNS)
    settings = run.profile.disp

    def make() -> pd.DataFrame:
        mdlm, work = base_mdlm(run.profile, run.device), run.store.work("measures", spec)
        tables = [_of_kind(run, mdlm, kind, work / kind.replace("/", "-")) for kind in MEASURES]
        return pd.concat(tables, ignore_index=True)[COLUMNS]

    spec = data_spec(run, "questions") | base_spec(run.profile)
    spec |= settings.model_dump(mode="json", include={"curve_questions", "ratios", "threshold", "estimator", "batch"})
    spec |= {"seed": run.seed, "code": code_digest(__name__)}
    return run.store.table("measures", spec, make)


def _of_kind(run: Run, mdlm: Mdlm, kind: str, work: Path) -> pd.DataFrame:
    settings, test = run.profile.disp, question_data(run, "test")
    table = draw_rows(test.table[test.table["kind"] == kind], settings.curve_questions, run.seed, "test")
    data, blind = questions(mdlm, test, table), float("nan")
    if kind == CHOICE:
        train = question_data(run, "train").table
        asked = train[train["kind"] == kind], table
        blind = float(guessed(*(rows.assign(answer=rows["answer"].map(word)) for rows in asked)).mean())
    rows = []
    for method in METHODS:
        scores = TOKEN_SCORES[method](mdlm, data, **scoring(run), work=work / f"scores {method}")
        for ratio in tqdm(settings.ratios, desc=f"mask ratios, {kind}, {method}", unit="ratio"):
            said = answer(mdlm, data, settings.threshold, mask_top(scores, ratio), work=work / f"{method} {ratio}")
            row = {"measure": MEASURES[kind], "method": LABELS.get(method, method), "ratio": ratio, "blind": blind}
            rows.append(row | over_clusters(*_right(said, data, kind)))
    made = pd.DataFrame(rows)
    whole = made[made["ratio"] == 0].set_index("method")["value"]
    return made.assign(relative=made["value"] / made["method"].map(whole))


def _right(said: list[str], data: Questions, kind: str) -> tuple[Bool[Tensor, " part"], list[int]]:
    if kind == DESCRIPTION:
        return right_parts(said, data)
    same = [word(one) == word(known) for one, known in zip(said, data.answers, strict=True)]
    return torch.tensor(same, dtype=torch.bool), data.table["image"].tolist()


def word(answer: str) -> str:
    """What is chosen: "no" of "no, the hair is red"."""
    return answer.split(",")[0].strip()


def measure_curves(table: pd.DataFrame) -> Figure:
    """Share right against ρ, a panel a measure, a line a score. Columns as of `clean_measures`."""
    require(table, *COLUMNS)
    blind = table["blind"].dropna()
    never = f" The best choice without looking: {blind.iloc[0]:.2f}." if len(blind) else ""
    note = f"The base model. Bands: {over_pictures(table)}, {counts(table.assign(metric=table['measure']))}.{never}"
    return bands(table, "ratio", "method", column="measure", xlabel=RATIO, ylabel="share right", note=note)
