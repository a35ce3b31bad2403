"""What of an answer is right: of a description each attribute, of a known kind the whole, to the letter, of a free
answer, as those about photographs are, the share of its words that `token_f1` gives."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.data import easyvqa, face_words
from lib.data.face_parts import ATTRIBUTES
from lib.data.face_words import facts
from lib.metrics.token_f1 import token_f1
from lib.tasks.questions import Questions

DESCRIPTION = "description"  # the kind of question whose answer is one
LITERAL = {*face_words.KINDS, *easyvqa.KINDS}  # kinds whose answers a model can give to the letter


def stated_facts(answers: list[str], true: list[str]) -> Bool[Tensor, "answer attribute"]:
    """Which attributes each description of a face states as the true one does."""
    read = [(facts(said), facts(known)) for said, known in zip(answers, true, strict=True)]
    rows = [[said[name] == known[name] for name in ATTRIBUTES] for said, known in read]
    return torch.tensor(rows, dtype=torch.bool).view(len(rows), len(ATTRIBUTES))


def right_parts(
    answers: list[str], data: Questions
) -> tuple[Bool[Tensor, " part"] | Float[Tensor, " part"], list[int]]:
    """Whether each part of the answers to `data` is right, or how far, and the picture that it is about.

    A description has a part for every attribute, another answer is one. Raises ValueError where they are not as many.
    """
    whole, kinds = right_answers(answers, data), data.table["kind"].tolist()
    right, about = [], []
    rows = zip(answers, data.answers, whole.tolist(), kinds, data.table["image"], strict=True)
    for said, known, same, kind, picture in rows:
        parts = stated_facts([said], [known])[0].tolist() if kind == DESCRIPTION else [same]
        right += parts
        about += [picture] * len(parts)
    return torch.tensor(right, dtype=whole.dtype), about


def right_answers(answers: list[str], data: Questions) -> Bool[Tensor, " sample"] | Float[Tensor, " sample"]:
    """Whether each answer to `data` is the true one, to the letter; where there are other kinds than LITERAL, floats,
    of those the `token_f1`. Raises ValueError where they are not as many."""
    kinds = data.table["kind"].tolist()
    right = [
        said == known if kind in LITERAL else token_f1(said, known)
        for said, known, kind in zip(answers, data.answers, kinds, strict=True)
    ]
    return torch.tensor(right, dtype=torch.bool if LITERAL.issuperset(kinds) else torch.float64)
