"""Faces: edit triples, descriptions and questions, split by identity.

An identity is a combination of values of all `ATTRIBUTES` and `FEATURES`. Each is drawn once as it is and once
with one attribute changed: an edit one way and its reverse the other way.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, UInt8
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from lib.data.face_parts import ATTRIBUTES, EVERYTHING, draw
from lib.data.face_words import DESCRIBE, description, instructions, what, yes_no
from lib.data.squares import Squares
from lib.settings.inputs import VALIDATION, check_counts

SPLITS = ("train", "validation", "test")
SEED = 0  # of the data, whatever the seed of a run


@dataclass(frozen=True)
class Faces(Squares):
    """Pictures and the edits between them.

    images:  `[picture, 3, size, size]` uint8; picture k < number of identities is identity k's own.
    faces:   one row a picture: every attribute and feature, `identity` and `split`.
    triples: columns source, target (picture indices), instruction, edit (the attribute), value, family (the
             identity), split; one row a phrasing.
    """

    faces: pd.DataFrame
    triples: pd.DataFrame

    def of(self, split: str) -> Int[Tensor, " picture"]:
        """Indices of all pictures of a split."""
        return torch.from_numpy((self.faces["split"] == split).to_numpy().nonzero()[0])


@dataclass(frozen=True)
class FaceQuestions(Squares):
    """Questions about the identities of one split, over the pictures of all.

    table: columns image (picture index), question, answer, kind (of `face_words.KINDS`), attribute ("" for a
    description).
    """

    faces: pd.DataFrame
    table: pd.DataFrame


def make_faces(size: int = 64, train: int = 12_000, test: int = 1_500) -> Faces:
    """Draw `train` + `test` identities and one edit of each; a tenth of `train` is for validation.

    No picture of the test split, edited ones too, is one of another split.
    Raises ValueError for counts that the split cannot give, and for pictures without a pixel.
    """
    check_counts(train, test)
    if size < 1:
        raise ValueError(f"size={size} must be at least 1, pixels a side")
    people = _people(train, test)
    edited = [row | {row["edit"]: row["value"]} for row in people]
    faces = pd.DataFrame(people + edited)
    images = draw_faces([{name: row[name] for name in EVERYTHING} for row in people + edited], size, "draw faces")
    triples = []
    for row in people:
        before, after = row["identity"], len(people) + row["identity"]
        for source, target, value in ((before, after, row["value"]), (after, before, row[row["edit"]])):
            for text in instructions(row["edit"], value):
                triples.append((source, target, text, row["edit"], value, row["identity"], row["split"]))
    columns = ["source", "target", "instruction", "edit", "value", "family", "split"]
    return Faces(images, faces[[*EVERYTHING, "identity", "split"]], pd.DataFrame(triples, columns=columns))


def face_questions(faces: Faces, split: str) -> FaceQuestions:
    """Of every identity of a split one description, an open question and one with yes or no on each attribute's turn.

    Identity k is asked about the attributes k mod 10 to k + 2 mod 10; of the questions with yes or no half are true.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    people = faces.faces[(faces.faces["split"] == split) & (faces.faces.index == faces.faces["identity"])]
    rows, names = [], list(ATTRIBUTES)
    for index, face in zip(people.index, people.to_dict("records"), strict=True):
        rows.append((index, DESCRIBE, description(face), "description", ""))
        for attribute in (names[(index + k) % len(names)] for k in range(3)):
            rows.append((index, *what(face, attribute), "what", attribute))
            values = list(ATTRIBUTES[attribute])
            others = [value for value in values if value != face[attribute]]
            turn = index // len(names)
            value = face[attribute] if turn % 2 else others[turn // 2 % len(others)]
            rows.append((index, *yes_no(face, attribute, value), "yes/no", attribute))
    table = pd.DataFrame(rows, columns=["image", "question", "answer", "kind", "attribute"])
    return FaceQuestions(faces.images, faces.faces, table)


def draw_faces(faces: list[dict[str, str]], size: int, label: str) -> UInt8[Tensor, "face 3 size size"]:
    """The pictures of faces that are given by their values, on all cores where there are many."""
    jobs = os.cpu_count() if len(faces) >= 1000 else 1
    parallel = Parallel(n_jobs=jobs, batch_size=64, return_as="generator")
    rendered = parallel(delayed(draw)(face, size) for face in faces)
    drawn = list(tqdm(rendered, desc=label, total=len(faces), unit="face", leave=False))
    if not drawn:
        return torch.empty(0, 3, size, size, dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(np.stack(drawn)))


def _people(train: int, test: int) -> list[dict]:
    """Identities with the edit of each, all of whose pictures differ from all others'; test first, then the rest."""
    draws, names = np.random.default_rng(SEED), list(ATTRIBUTES)
    rows, taken = [], set()
    while len(rows) < train + test:
        row = {name: str(draws.choice(list(values))) for name, values in EVERYTHING.items()}
        edit = names[len(rows) % len(names)]
        value = str(draws.choice([value for value in ATTRIBUTES[edit] if value != row[edit]]))
        both = {tuple(row.values()), tuple((row | {edit: value}).values())}
        if taken.isdisjoint(both):
            taken |= both
            rows.append(row | {"edit": edit, "value": value})
    held_back = test + round(VALIDATION * train)
    for k, row in enumerate(rows):
        row |= {"identity": k, "split": "test" if k < test else "validation" if k < held_back else "train"}
    return rows
