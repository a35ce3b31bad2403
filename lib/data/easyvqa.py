"""easy-VQA: 64 × 64 pictures of one shape in one of eight colours, questions, and sentence answers.

easy-vqa 1.0 by Victor Zhou, MIT. The one-word labels become sentences that state what is seen.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from PIL import Image
from tqdm.auto import tqdm

from lib.data.squares import Squares

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
KINDS = ("shape", "color", "yes/no")
_RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


@dataclass(frozen=True)
class EasyVqa(Squares):
    """One split. `table` has one row a question: image, question, label, answer, kind, caption."""

    table: pd.DataFrame

    def captions(self) -> list[str]:
        """ "a blue circle": one caption for each picture."""
        return self.table.drop_duplicates("image").sort_values("image")["caption"].tolist()


def read_easyvqa(split: str, size: int = 64) -> EasyVqa:
    """The fixed `train` or `test` split, decoded from the package's files. Raises ValueError for another one."""
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be 'train' or 'test'")
    import easy_vqa

    questions = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    files = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    order = sorted(files)
    number = {image: i for i, image in enumerate(order)}
    pictures = [
        _read(files[image], size) for image in tqdm(order, desc=f"read easy-VQA {split}", unit="image")
    ]
    stated = defaultdict(dict)
    for question, label, image in zip(*questions, strict=True):
        fact = _stated(question, label)
        if fact:
            stated[image].update([fact])
    rows = []
    for question, label, image in zip(*questions, strict=True):
        read = read_picture(pictures[number[image]]) if len(stated[image]) < 2 else ("", "")
        shape, colour = stated[image].get("shape", read[0]), stated[image].get("color", read[1])
        answer = sentence(label, shape, colour)
        rows.append((number[image], question, label, answer, kind_of(label), f"a {colour} {shape}"))
    columns = ["image", "question", "label", "answer", "kind", "caption"]
    return EasyVqa(torch.from_numpy(np.stack(pictures)), pd.DataFrame(rows, columns=columns))


def kind_of(label: str) -> str:
    """Which of `KINDS` a one-word label answers."""
    return "shape" if label in SHAPES else "color" if label in COLOURS else "yes/no"


def sentence(label: str, shape: str, colour: str) -> str:
    """The answer as a sentence: the label, and for yes/no what is seen."""
    if label in SHAPES:
        return f"the shape is a {label}"
    if label in COLOURS:
        return f"the color is {label}"
    return f"{label}, it is a {colour} {shape}"


def blind_prior(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """For every test question whether the best answer that never looks is right: the question's usual label."""
    usual = train.groupby("question")["label"].agg(lambda labels: labels.value_counts().index[0])
    return (test["question"].map(usual) == test["label"]).to_numpy()


def read_picture(picture: UInt8[np.ndarray, "3 size size"]) -> tuple[str, str]:
    """(shape, colour) read off the pixels: the share of its bounding box that the shape fills, its pure colour.

    Over all pictures whose questions tell, a triangle fills 0.53 to 0.74, a circle 0.81 to 0.95, a rectangle
    at least 0.99. Used where a picture's questions do not tell (every ninth).
    """
    shape = (picture != picture[:, :1, :1]).any(0)
    rows, columns = np.nonzero(shape)
    fill = shape.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    name = "triangle" if fill < 0.77 else "circle" if fill < 0.975 else "rectangle"
    counts = {c: (picture == np.array(rgb)[:, None, None]).all(0).sum() for c, rgb in _RGB.items()}
    return name, max(counts, key=counts.get)


def _stated(question: str, label: str) -> tuple[str, str] | None:
    """What a question and its label say of the picture, as (kind, name), if anything positive."""
    words = question.rstrip("?").split()
    if label in ("yes", "no"):
        denied = "not" in words or "no" in words
        named = [word for word in words if word in SHAPES + COLOURS]
        return (kind_of(named[0]), named[0]) if (label == "yes") != denied else None
    return kind_of(label), label


def _read(file: str, size: int) -> np.ndarray:
    image = Image.open(file).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(image).transpose(2, 0, 1).copy()
