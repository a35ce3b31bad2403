"""MMMU's questions with pictures (Yue et al. 2024), asked as lmms-eval asks them (`mmmu_val`, LLaVA's prompts).

Files as in `MMMU/MMMU` (a folder a subject) or merged into one: `<split>-*.parquet` with the columns id, question,
options (a Python list written as text), answer, question_type, and image_1 … image_7. For the scores see
`lib.metrics.mmmu`.
"""

from __future__ import annotations

import ast
import re

import pandas as pd
from torch.utils.data import ConcatDataset

from lib.data.pictures import PhotoQuestions, Pictures, padded
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
    missing files and for rows in another format. `datasets` keeps a copy of the files (see `lib.data.parquet`).
    """
    folder = dataset_folder(name, revision, [f"*{split}-*.parquet"])
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise ValueError(f"folder {folder} has no file {split}-*.parquet: download that split of MMMU into it")
    from lib.data.parquet import read_parquet

    rows, sources = [], []
    for file in files:
        texts, cells = read_parquet(file, TEXTS, IMAGES, ADVICE)
        sources.append(cells)
        for k, row in enumerate(texts):
            rows.append(_row(row, file.name, cells.held(k), len(IMAGES) * len(rows)))
    return PhotoQuestions(Pictures(ConcatDataset(sources), size, padded), pd.DataFrame(rows))


def _row(row: dict, file: str, held: set[str], first: int) -> dict:
    """The question of a row that has pictures in the columns `held`; picture `first` is its image_1."""
    subject = re.fullmatch(r"[a-z]+_(.+?)_\d+", row["id"] or "")
    if not subject:
        raise ValueError(f"{file}: id={row['id']!r} must read as 'validation_Accounting_1' does")
    for column in ("question", "answer"):
        if not isinstance(row[column], str) or not row[column].strip():
            raise ValueError(f"{row['id']}: {column}={row[column]!r} must be a text that is not empty: {ADVICE}")
    kind = row["question_type"]
    if kind not in ("multiple-choice", "open"):
        raise ValueError(f"{row['id']}: question_type={kind!r} must be 'multiple-choice' or 'open': {ADVICE}")
    options = options_of(row["options"], row["id"])
    question = prompt(row["question"], options if kind == "multiple-choice" else None)
    named = sorted(set(re.findall(r"<image (\d+)>", question)))
    if not named or not {f"image_{n}" for n in named} <= held:
        raise ValueError(f"{row['id']}: the question must name pictures that its row holds, not {named}")
    images = tuple(first + int(n) - 1 for n in named)
    texts = {name: row[name] for name in ("answer", "id", "question_type")}
    return texts | dict(question=question, kind=subject[1], options=options, image=images[0], images=images)


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
