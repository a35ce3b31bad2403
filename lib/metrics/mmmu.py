"""MMMU's answers read from free text and scored, by the rules of lmms-eval's `mmmu_val`.

The rules are those of the lmms-eval that LLaDA-V is published with, and of all versions before 23 June 2025 (#724).
Later ones hand an open question's answer on as one text, whose single characters are then compared with the truth, so
that all open questions (53 of 900) count as wrong; here, as in MMMU's own code, all that was read counts.

Where no option can be read, lmms-eval guesses from one unseeded stream of random numbers. Here a question's guess is
drawn with the seed and the question's id, whatever else is scored, and `guessed` says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
import torch

from lib.data.mmmu import letter
from lib.metrics.intervals import rate
from lib.runtime.seeds import generator

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.2e3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12, 1.5, .5
)


def read_choice(response: str, options: Sequence[str]) -> str | None:
    """The letter that a response chooses, or None where there is none to be read.

    Looked for in turn: "(A)", "A ", "A.", and in responses of more than five words an option's text. Of several the one
    that comes last is taken; letters, in the second and third form, by where they stand alone between spaces.
    """
    for mark in ",.!?;:'":
        response = response.strip(mark)
    response = f" {response} "
    letters = [letter(k) for k in range(len(options))]
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [name for name in letters if form.format(name) in response]
        if named:
            return max(named, key=lambda name: response.rfind(place.format(name)))  # noqa: B023
    if len(response.split()) <= 5:
        return None
    told = response.lower()
    places = {name: told.rfind(option.lower()) for name, option in zip(letters, options, strict=True)}
    named = [name for name in letters if places[name] >= 0]
    return max(named, key=places.__getitem__) if named else None


def read_open(response: str) -> list[str | float]:
    """What a response to an open question may mean: the tails of its sentences after words such as "is", and numbers.

    Texts are in lower case, numbers rounded to two decimals.
    """
    response = response.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", response)
    tails = []
    for k, sentence in enumerate(sentences):
        cues = _CUES + (("=",) if k == len(sentences) - 1 else ())
        after = [sentence.split(cue)[-1].strip() for cue in cues if cue in sentence]
        tail = _shortest(after)
        if tail and tail not in (":", ",", ".", "!", "?", ";", "'"):
            tails.append(tail)
    tails = tails or [response]
    numbers = [number for tail in tails for form in _NUMBERS for number in re.findall(form, tail)]
    return list(dict.fromkeys(value for text in tails + numbers for value in normalized(text)))


def _shortest(texts: list[str]) -> str:
    """The first of the shortest texts; an empty one gives way to whatever follows it, as in lmms-eval."""
    best = ""
    for text in texts:
        if not best or len(text) < len(best):
            best = text
    return best


def normalized(text: str) -> list[str | float]:
    """A number rounded to two decimals, or a text in lower case; of one letter, with a space before or after it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_correct(truth: str, read: Sequence[str | float]) -> bool:
    """Whether a text that was read contains the true answer, or a number that was read is it."""
    true = normalized(truth)
    texts = [text for text in true if isinstance(text, str)]
    return any(value in true if isinstance(value, float) else any(text in value for text in texts) for value in read)


def score(table: pd.DataFrame, responses: Sequence[str], seed: int) -> pd.DataFrame:
    """One row a question of `load_mmmu`'s table, in its order: id, subject, question_type, read, guessed, correct.

    Raises ValueError unless there is one response for each question.
    """
    if len(responses) != len(table):
        raise ValueError(f"{len(responses)} responses are given for {len(table)} questions, one each is needed")
    rows = []
    for row, response in zip(table.itertuples(), responses, strict=True):
        scored = {"id": row.id, "subject": row.kind, "question_type": row.question_type}
        if row.question_type == "multiple-choice":
            chosen = read_choice(response, row.options)
            guessed = chosen is None
            if guessed:
                draw = torch.randint(len(row.options), (), generator=generator(seed, "mmmu", row.id))
                chosen = letter(int(draw))
            scored |= {"read": chosen, "guessed": guessed, "correct": chosen == row.answer}
        else:
            read = read_open(response)
            scored |= {"read": " | ".join(map(str, read)), "guessed": False, "correct": open_correct(row.answer, read)}
        rows.append(scored)
    return pd.DataFrame(rows)


def accuracy(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over all questions, by discipline and by subject: name, value, low, high (95 %, Wilson), n, guessed.

    `guessed` is the share whose option was drawn. Raises ValueError for a subject that MMMU does not have.
    """
    known = {subject for subjects in DISCIPLINES.values() for subject in subjects}
    unknown = sorted(set(scores["subject"]) - known)
    if unknown:
        raise ValueError(f"subject={unknown[0]!r} must be one of MMMU's: {', '.join(sorted(known))}")
    groups = {"Overall": known, **DISCIPLINES, **{subject: (subject,) for subject in sorted(known)}}
    rows = []
    for name, subjects in groups.items():
        chosen = scores[scores["subject"].isin(set(subjects))]
        if len(chosen):
            right = torch.tensor(chosen["correct"].to_numpy(dtype=bool))
            rows.append({"name": name} | rate(right) | {"guessed": float(chosen["guessed"].mean())})
    return pd.DataFrame(rows)
