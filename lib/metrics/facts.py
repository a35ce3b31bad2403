"""What of an answer is right: of a description each attribute, of another answer the whole, to the letter."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from lib.data.face_parts import ATTRIBUTES
from lib.data.face_words import facts
from lib.tasks.questions import Questions

DESCRIPTION = "description"  # the kind of question whose answer is one


def stated_facts(answers: list[str], true: list[str]) -> Bool[Tensor, "answer attribute"]:
    """Which attributes each description of a face states as the true one does."""
    read = [(facts(said), facts(known)) for said, known in zip(answers, true, strict=True)]
    rows = [[said[name] == known[name] for name in ATTRIBUTES] for said, known in read]
    return torch.tensor(rows, dtype=torch.bool).view(len(rows), len(ATTRIBUTES))


def right_parts(answers: list[str], data: Questions) -> tuple[Bool[Tensor, " part"], list[int]]:
    """Whether each part of the answers to `data` is right, and the picture that it is about.

    A description has a part for every attribute, another answer is one. Raises ValueError where they are not as many.
    """
    right, about, table = [], [], data.table
    for said, known, kind, picture in zip(answers, data.answers, table["kind"], table["image"], strict=True):
        parts = stated_facts([said], [known])[0].tolist() if kind == DESCRIPTION else [said == known]
        right += parts
        about += [picture] * len(parts)
    return torch.tensor(right, dtype=torch.bool), about
