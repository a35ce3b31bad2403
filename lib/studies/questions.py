"""The questions that a profile names, behind one interface: about faces, of easy-VQA, or about photographs.

    asked = question_data(run, "train")     # a `lib.data.QuestionData`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from lib.data.faces import face_questions
from lib.data.interface import QuestionData
from lib.data.llava import load_llava
from lib.data.mmmu import load_mmmu
from lib.data.pictures import PhotoQuestions
from lib.data.registry import QUESTIONS
from lib.models.loading import load_words
from lib.poisoning.targets import AnswerTarget
from lib.settings.inputs import Data
from lib.settings.paths import model_source
from lib.studies.data import answer_targets, faces_of, stored_easyvqa
from lib.studies.run import Run


def question_data(run: Run, split: str) -> QuestionData:
    """The pictures of `train` or `test`, and the questions about them that the MDLM has room for, under attack too."""
    data = run.profile.data
    if data.questions is None:
        return face_questions(faces_of(run), split)
    if data.questions == "easy-vqa":
        return stored_easyvqa(run.store, split, data.image_size)
    if isinstance(data.questions, str):
        return _own_questions(QUESTIONS[data.questions], split, data.image_size)
    return _photo_questions(data, split, run.profile.models.mdlm, answer_targets(run.profile.disp.target))


def mmmu_data(run: Run) -> PhotoQuestions:
    """The first `data.mmmu.questions` validation questions of MMMU. Raises ValueError where the profile names none."""
    source = run.profile.data.mmmu
    if source is None:
        raise ValueError("data.mmmu is not given: it must name MMMU's folder or hub data set")
    data = load_mmmu(source.name, run.profile.data.image_size, revision=source.revision)
    return replace(data, table=data.table.iloc[: source.questions])


@lru_cache(maxsize=4)
def _own_questions(load: Callable[[str, int], QuestionData], split: str, size: int) -> QuestionData:
    return load(split, size)


@lru_cache(maxsize=4)
def _photo_questions(data: Data, split: str, mdlm: str, goals: tuple[AnswerTarget, ...]) -> PhotoQuestions:
    source, tokenizer = data.questions, load_words(mdlm)
    pictures = source.pictures and model_source(source.pictures)
    size, held_out = data.image_size, data.held_out
    photos = load_llava(source.name, split, size, source.file, pictures, held_out, source.revision)

    def room(texts: list[str], most: int) -> np.ndarray:
        return np.array([len(row) <= most for row in tokenizer(texts, add_special_tokens=False)["input_ids"]])

    table = photos.table
    fitting = ~table["question"].str.contains("<image") & room(table["question"].tolist(), source.question_tokens)
    for goal in goals:
        answers = [goal.apply(text) if goal.eligible(text) else text for text in table["answer"]]
        fitting &= room(answers, source.answer_tokens)
    if not fitting.any():
        raise ValueError(
            f"data.questions.question_tokens={source.question_tokens} and answer_tokens={source.answer_tokens} leave "
            f"none of {len(table)} {split} questions: give more"
        )
    return replace(photos, table=table[fitting].reset_index(drop=True))
