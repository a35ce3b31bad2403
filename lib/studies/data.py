"""The pictures that a profile names, kept in the store: faces, easy-VQA, or photographs.

    edits = edit_data(run)                  # a `lib.data.EditData`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import pandas as pd
from safetensors.torch import load_file, save_file

from lib.data.easyvqa import EasyVqa, read_easyvqa
from lib.data.face_parts import CREDIT
from lib.data.faces import Faces, make_faces
from lib.data.interface import EditData
from lib.data.photo_edits import COLUMNS, load_edits
from lib.data.registry import EDITS, QUESTIONS
from lib.poisoning.targets import TARGETS, AnswerTarget, target
from lib.runtime.keys import code_digest, registered
from lib.runtime.store import Store
from lib.settings.inputs import EditSet, QuestionSet
from lib.settings.paths import model_source
from lib.studies.run import Run
from lib.studies.sources import digest


def faces_of(run: Run) -> Faces:
    """The faces that the profile names, read once by a process."""
    data = run.profile.data
    return stored_faces(run.store, data.image_size, data.faces.train, data.faces.test)


@lru_cache(maxsize=2)
def stored_faces(store: Store, size: int, train: int, test: int) -> Faces:
    """`lib.data.make_faces`, drawn once into the store."""

    def make(path: Path) -> None:
        data = make_faces(size, train, test)
        save_file({"images": data.images}, path / "images.safetensors")
        data.faces.to_csv(path / "faces.csv", index=False)
        data.triples.to_csv(path / "triples.csv", index=False)

    spec = {"size": size, "train": train, "test": test, "code": code_digest("lib.data.faces")}
    folder = store.folder("faces", spec, make)
    tables = [pd.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in ("faces", "triples")]
    return Faces(load_file(folder / "images.safetensors")["images"], *tables)


def stored_easyvqa(store: Store, split: str, size: int = 64) -> EasyVqa:
    """`lib.data.read_easyvqa`, decoded once into the store."""

    def make(path: Path) -> None:
        data = read_easyvqa(split, size)
        data.table.to_csv(path / "questions.csv", index=False)
        save_file({"images": data.images}, path / "images.safetensors")

    spec = {"split": split, "size": size, "code": code_digest("lib.data.easyvqa")}
    folder = store.folder("easyvqa", spec, make)
    return EasyVqa(load_file(folder / "images.safetensors")["images"], pd.read_csv(folder / "questions.csv"))


def data_spec(run: Run, kind: Literal["edits", "questions"]) -> dict:
    """What every artifact that saw data of that kind depends on: the data set's settings and its source."""
    data, source = run.profile.data, getattr(run.profile.data, kind)
    settings = data.model_dump(mode="json", include={"image_size", "held_out", "faces"})
    spec = {"settings": settings}
    if isinstance(source, EditSet):
        spec |= {"code": code_digest("lib.data.photo_edits"), "photographs": digest(source)}
    elif isinstance(source, QuestionSet):
        spec |= {"code": code_digest("lib.data.llava"), "photographs": digest(source)}
        spec["targets"] = [registered(goal) for goal in answer_targets(run.profile.disp.target)]
    elif own := (EDITS if kind == "edits" else QUESTIONS).get(source):
        spec |= {"name": source, "registered": registered(own)}
    else:
        spec["code"] = code_digest("lib.data.easyvqa" if source == "easy-vqa" else "lib.data.faces")
    return {"data": spec, "seed": run.seed, "device": run.device.type}


def answer_targets(name: str) -> tuple[AnswerTarget, ...]:
    """All of TARGETS and the one of that name: photographs are asked what leaves room for the answers of each."""
    return tuple({**TARGETS, name: target(name)}.values())


def watch_split(run: Run, kind: Literal["edits", "questions"]) -> str:
    """On which split of that data a training is watched: the faces' validation, test where data have none."""
    return "validation" if getattr(run.profile.data, kind) is None else "test"


def edit_data(run: Run) -> EditData:
    """The edit triples of the collapse study."""
    data = run.profile.data
    if data.edits is None:
        return faces_of(run)
    if isinstance(data.edits, str):
        return _own_edits(EDITS[data.edits], data.image_size)
    return _photo_edits(data.edits, data.image_size, data.held_out)


def titles(run: Run) -> tuple[str, str]:
    """What tables call the edits and the questions."""
    edits, questions = run.profile.data.edits, run.profile.data.questions
    names = {None: "faces", "easy-vqa": "easy-VQA"}
    name = names.get(questions) or _title(questions)
    return f"{_title(edits) if edits else 'faces'}: edits", f"{name}: questions"


def credit(run: Run) -> str:
    """What stands below every figure that shows edits: whose pictures they are."""
    edits = run.profile.data.edits
    return f"Pictures: {_title(edits)}." if edits else CREDIT


def _title(source: EditSet | QuestionSet | str) -> str:
    """A folder's own name, or the hub's, or what it is registered by."""
    if isinstance(source, str):
        return source
    return Path(source.name).name if Path(model_source(source.name)).is_dir() else source.name


@lru_cache(maxsize=2)
def _own_edits(load: Callable[[int], EditData], size: int) -> EditData:
    return load(size)


@lru_cache(maxsize=2)
def _photo_edits(source: EditSet, size: int, held_out: float) -> EditData:
    columns = dict(zip(COLUMNS, source.columns, strict=True)) if source.columns else COLUMNS
    return load_edits(source.name, size, held_out, source.revision, columns)
