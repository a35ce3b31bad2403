"""Instruction sets in LLaVA's format: a JSON list of {id, image, conversations: [{from, value}, …]}.

    [{"id": "7", "image": "coco/train2017/7.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is on the plate?"}, {"from": "gpt", "value": "A slice of bread."}]}]

The first turn of each conversation becomes a question and its answer: later turns refer to earlier ones, which a single
question cannot hold. Samples without a picture (text only) and with several are left out, and,
with a warning, those whose question or answer is empty. Such sets have no split of
their own: pictures, never questions, are dealt to train and test by the hash of their path.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd

from lib.data.pictures import FileSource, PhotoQuestions, Pictures, inner_path, padded
from lib.data.sources import dataset_folder, dealt, parsed, read_text


def load_llava(
    name: str,
    split: str,
    size: int,
    file: str = "llava_instruct_150k.json",
    pictures: str | None = None,
    held_out: float = 0.1,
    revision: str | None = None,
) -> PhotoQuestions:
    """The `train` or `test` side of the set in `file`, which lies in the folder (or hub data set) `name`.

    pictures: the folder that the paths in it are relative to, by default `name`. Columns of the table: image, question,
    answer, kind (the collection a picture is from: its path's first folder), id. Pictures are padded to squares.
    Raises ValueError, in a sentence that says what to do, for files that are missing and samples in another format.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be 'train' or 'test'")
    folder = dataset_folder(name, revision, [file])
    root = Path(pictures) if pictures else folder
    rows, number, empty = [], {}, 0
    for k, sample in enumerate(_samples(folder / file)):
        row = _row(sample, f"{file}, sample {k}")
        empty += bool(row) and not (row["question"] and row["answer"])
        if row and row["question"] and row["answer"] and dealt(row["path"], held_out) == split:
            rows.append({"image": number.setdefault(row.pop("path"), len(number))} | row)
    if empty:
        warnings.warn(f"{file}: {empty} samples have no text as question or answer and are left out", stacklevel=2)
    if not rows:
        raise ValueError(f"{file} has no sample with one picture for {split}: use another file or another held_out")
    files = FileSource([root / path for path in number], root)
    return PhotoQuestions(Pictures(files, size, padded), pd.DataFrame(rows))


def _samples(file: Path) -> list:
    """Read whole: the samples differ in their fields, and `datasets` would make numbers of ids where some are."""
    if not file.is_file():
        raise ValueError(f"{file} is missing: put the instruction set's JSON file there or name another")
    samples = parsed(read_text(file), str(file))
    if not isinstance(samples, list):
        raise ValueError(f"{file} holds a {type(samples).__name__}: it must be a list of samples in LLaVA's format")
    return samples


def _row(sample: object, where: str) -> dict[str, str] | None:
    """Path, question, answer, kind and id of a sample; None where it has not exactly one picture."""
    fields = sample if isinstance(sample, dict) else {}
    path, turns = fields.get("image"), fields.get("conversations")
    path = path[0] if isinstance(path, list) and len(path) == 1 else path
    first = turns[:2] if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns[:2]) else []
    speakers, texts = [turn.get("from") for turn in first], [turn.get("value") for turn in first]
    if speakers != ["human", "gpt"] or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where} (id {fields.get('id')!r}): conversations must be a list that begins with a turn from 'human' and "
            "one from 'gpt', each with a text as value: convert the file to LLaVA's format"
        )
    if path is None or isinstance(path, list):
        return None
    path = inner_path(path, f"{where}: image")
    question, answer = (text.replace("<image>", "").strip() for text in texts)
    kind = Path(path).parts[0] if len(Path(path).parts) > 1 else "image"
    return {"path": path, "question": question, "answer": answer, "kind": kind, "id": str(fields.get("id", ""))}
