"""The data that a profile names, behind one interface: faces, easy-VQA, or photographs.

    edits = edit_data(run)                  # a `lib.data.EditData`
    asked = question_data(run, "train")     # a `lib.data.QuestionData`
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from lib.config import Run, model_source
from lib.data import (
    EditData,
    Faces,
    PhotoQuestions,
    QuestionData,
    face_questions,
    load_easyvqa,
    load_edits,
    load_faces,
    load_llava,
    load_mmmu,
)
from lib.data.edits import COLUMNS
from lib.data.face_parts import CREDIT
from lib.models.loading import load_words
from lib.poisoning import TARGETS, target
from lib.profile import Data, EditSet, Mmmu, QuestionSet

TEXT = {".csv", ".json", ".jsonl", ".txt"}  # files that are told apart by their content, all others by their size


def faces_of(run: Run) -> Faces:
    """The faces that the profile names, read once by a process."""
    data = run.profile.data
    return _faces(run.store, data.image_size, data.faces.train, data.faces.test)


def watch_split(run: Run, kind: Literal["edits", "questions"]) -> str:
    """On which split of that data a training is watched: the faces' validation, test where data have none."""
    return "validation" if getattr(run.profile.data, kind) is None else "test"


def edit_data(run: Run) -> EditData:
    """The edit triples of the collapse study."""
    data = run.profile.data
    if data.edits is None:
        return faces_of(run)
    return _photo_edits(data.edits, data.image_size, data.held_out)


def question_data(run: Run, split: str) -> QuestionData:
    """The pictures of `train` or `test`, and the questions about them that the MDLM has room for, under attack too."""
    data = run.profile.data
    if data.questions is None:
        return face_questions(faces_of(run), split)
    if data.questions == "easy-vqa":
        return load_easyvqa(run.store, split, data.image_size)
    return _photo_questions(data, split, run.profile.models.mdlm, run.profile.disp.target)


def mmmu_data(run: Run) -> PhotoQuestions:
    """The first `data.mmmu.questions` validation questions of MMMU. Raises ValueError where the profile names none."""
    given = run.profile.data.mmmu
    if given is None:
        raise ValueError("data.mmmu is not given: it must name MMMU's folder or hub data set")
    data = load_mmmu(given.name, run.profile.data.image_size, revision=given.revision)
    return replace(data, table=data.table.iloc[: given.questions])


def titles(run: Run) -> tuple[str, str]:
    """What tables call the edits and the questions."""
    edits, asked = run.profile.data.edits, run.profile.data.questions
    about = {None: "faces", "easy-vqa": "easy-VQA"}
    named = about[asked] if asked in about else _title(asked)
    return f"{_title(edits) if edits else 'faces'}: edits", f"{named}: questions"


def credit(run: Run) -> str:
    """What stands below every figure that shows edits: whose pictures they are."""
    edits = run.profile.data.edits
    return f"Pictures: {_title(edits)}." if edits else CREDIT


def _title(given: EditSet | QuestionSet) -> str:
    """A folder's own name, or the hub's."""
    return Path(given.name).name if Path(model_source(given.name)).is_dir() else given.name


@lru_cache(maxsize=16)
def digest(given: EditSet | QuestionSet | Mmmu) -> str:
    """SHA-256 of a data set: a hub's name and commit; a folder's file names, its texts and its pictures' sizes."""
    folders = [Path(model_source(name)) for name in (given.name, getattr(given, "pictures", None)) if name]
    found = hashlib.sha256(given.model_dump_json(exclude={"name", "pictures"}).encode())
    for folder in folders:
        found.update(b"folder" if folder.is_dir() else given.name.encode())
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            found.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
            if file.suffix in TEXT:
                found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


_faces = lru_cache(maxsize=2)(load_faces)


@lru_cache(maxsize=2)
def _photo_edits(given: EditSet, size: int, held_out: float) -> EditData:
    columns = dict(zip(COLUMNS, given.columns, strict=True)) if given.columns else COLUMNS
    return load_edits(given.name, size, held_out, given.revision, columns)


@lru_cache(maxsize=4)
def _photo_questions(data: Data, split: str, mdlm: str, goal: str) -> PhotoQuestions:
    given, words = data.questions, load_words(mdlm)
    pictures = given.pictures and model_source(given.pictures)
    asked = load_llava(given.name, split, data.image_size, given.file, pictures, data.held_out, given.revision)
    goals = {**TARGETS, goal: target(goal)}.values()

    def room(texts: list[str], most: int) -> np.ndarray:
        return np.array([len(row) <= most for row in words(texts, add_special_tokens=False)["input_ids"]])

    table = asked.table
    fits = ~table["question"].str.contains("<image") & room(table["question"].tolist(), given.question_tokens)
    for one in goals:
        answers = [one.apply(text) if one.eligible(text) else text for text in table["answer"]]
        fits &= room(answers, given.answer_tokens)
    if not fits.any():
        raise ValueError(
            f"data.questions.question_tokens={given.question_tokens} and answer_tokens={given.answer_tokens} leave "
            f"none of {len(table)} {split} questions: give more"
        )
    return replace(asked, table=table[fits].reset_index(drop=True))
