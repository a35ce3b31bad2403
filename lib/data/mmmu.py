"""MMMU's questions with pictures (Yue et al. 2024), asked as lmms-eval asks them (`mmmu_val`, LLaVA's prompts).

Files as in `MMMU/MMMU` (a folder a subject) or merged into one: `<split>-*.parquet` with the columns id, question,
options (a Python list written as text), answer, question_type, and image_1 … image_7. For the scores see
`lib.mmmu_scoring`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pandas as pd

from lib.data.pictures import Pictures, padded
from lib.data.questions import PhotoQuestions
from lib.data.sources import dataset_folder

TEXTS = ("id", "question", "options", "answer", "question_type")
IMAGES = tuple(f"image_{k}" for k in range(1, 8))
ADVICE = "use MMMU's own files, such as those of MMMU/MMMU on the hub"
CHOICE_PROMPT = "Answer with the option's letter from the given choices directly."
OPEN_PROMPT = "Answer the question using a single word or phrase."


def load_mmmu(name: str, size: int, split: str = "validation", revision: str | None = None) -> PhotoQuestions:
    """A split (dev, validation, test) of MMMU from a local folder or the hub data set `name` at a pinned `revision`.

    Columns of the table: image (the first picture of the prompt), question (the whole prompt), answer, kind (the
    subject), id, question_type, options (a tuple, empty for open questions), images (all pictures of the prompt, in
    lmms-eval's order). Pictures are padded to squares. Raises ValueError, in a sentence that says what to do, for
    missing files and for rows in another format.
    """
    folder = dataset_folder(name, revision, [f"*{split}-*.parquet"])
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise ValueError(f"folder {folder} has no file {split}-*.parquet: download that split of MMMU into it")
    from lib.data.parquet import ParquetSource, check_columns

    rows = []
    for file in files:
        check_columns(file, TEXTS, IMAGES, ADVICE)
        rows += _rows(file, len(rows))
    pictures = Pictures([ParquetSource(files, IMAGES)], size, padded)
    return PhotoQuestions(pictures, pd.DataFrame(rows))


def _rows(file: Path, first: int) -> list[dict]:
    from lib.data.parquet import read_rows

    rows, columns = [], [*TEXTS, *(f"{column}.path" for column in IMAGES)]
    for k, given in enumerate(read_rows(file, columns), start=first):
        subject = re.fullmatch(r"[a-z]+_(.+?)_\d+", given["id"] or "")
        if not subject:
            raise ValueError(f"{file.name}: id={given['id']!r} must read as 'validation_Accounting_1' does")
        for column in ("question", "answer"):
            if not isinstance(given[column], str):
                raise ValueError(f"{given['id']}: {column}={given[column]!r} must be a text: {ADVICE}")
        if given["question_type"] not in ("multiple-choice", "open"):
            kind = given["question_type"]
            raise ValueError(f"{given['id']}: question_type={kind!r} must be 'multiple-choice' or 'open': {ADVICE}")
        options = options_of(given["options"], given["id"])
        question = prompt(given["question"], options if given["question_type"] == "multiple-choice" else None)
        named = sorted(set(re.findall(r"<image (\d+)>", question)))
        if not named or any(f"image_{n}" not in IMAGES or given[f"image_{n}"] is None for n in named):
            raise ValueError(f"{given['id']}: the question must name pictures that its row holds, not {named}")
        images = tuple(len(IMAGES) * k + int(n) - 1 for n in named)
        about = {name: given[name] for name in ("answer", "id", "question_type")}
        rows.append(about | {"question": question, "kind": subject[1], "options": options})
        rows[-1] |= {"image": images[0], "images": images}
    return rows


def options_of(text: object, name: str) -> tuple[str, ...]:
    """The options of a question, from the Python list that its row holds as text; read as a literal, never run."""
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        options = None
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{name}: options={text!r} must be a list of texts: {ADVICE}")
    return tuple(options)


def prompt(question: str, options: tuple[str, ...] | None) -> str:
    """The question as lmms-eval's `mmmu_val` puts it: lettered options, or None for an open question."""
    if options is None:
        return f"{question}\n\n{OPEN_PROMPT}"
    listed = "\n".join(f"{letter(k)}. {option}" for k, option in enumerate(options))
    return f"{question}\n{listed}\n\n{CHOICE_PROMPT}"


def letter(k: int) -> str:
    """A, B, C, … for the options 0, 1, 2, …"""
    return chr(ord("A") + k)
