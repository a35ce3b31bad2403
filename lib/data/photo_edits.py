"""Edit triples of photographs (source picture, instruction, edited picture), such as edited CelebA faces.

Two layouts, both what the `datasets` library writes and what InstructPix2Pix is trained on:

    metadata.csv or metadata.jsonl     one row an edit, pictures named by paths relative to it, in the columns
    and pictures below it              input_image and edited_image (or input_image_file_name, …), and edit_prompt
    *.parquet                          the same columns, the pictures in the cells

A data set may have the parts train and test (or validation): folders of these names with a metadata file each, or
parquet files whose names begin so. Where it has not both, families are dealt to the splits by the hash of their name. A
family is the column `family` (for CelebA the identity), else the source picture. Columns `edit` and `value` are kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch.utils.data import ConcatDataset

from lib.data.pictures import FileSource, Photographs, Pictures, Source, cropped, inner_path
from lib.data.sources import dataset_folder, dealt, parsed, read_text

COLUMNS = {"source": "input_image", "instruction": "edit_prompt", "target": "edited_image"}
SPLITS = {"train": "train", "test": "test", "validation": "test"}
METADATA = ("metadata.csv", "metadata.jsonl")
SAME = 8  # pictures that are compared where a test set says what the training set says
ADVICE = "name the data set's own columns for source, instruction and target in the profile, or use another data set"
FILES = ("*.parquet", "*metadata.csv", "*metadata.jsonl", "*.jpg", "*.jpeg", "*.png", "*.webp")


@dataclass(frozen=True)
class PhotoEdits(Photographs):
    """Edit triples over pictures that are read when asked for.

    triples: columns source, target (picture indices), instruction, edit, value, family, split.
    """

    triples: pd.DataFrame


def load_edits(
    name: str,
    image_size: int,
    held_out: float = 0.1,
    revision: str | None = None,
    columns: Mapping[str, str] = COLUMNS,
) -> PhotoEdits:
    """The triples of a local folder or of a hub data set at a pinned `revision`, pictures cropped to squares.

    columns: what the data set calls source, instruction and target. Of parquet files `datasets` keeps a copy in the
    user's cache, as large as their pictures (see `lib.data.parquet`). Raises ValueError, in a sentence that says what
    to do, for a folder without data, a missing column, file or instruction, and a hub that does not give the data.
    """
    folder = dataset_folder(name, revision, FILES)
    parquet = sorted(folder.rglob("*.parquet"))
    parts = [(SPLITS.get(file.name.split("-")[0], ""), file) for file in parquet] or _metadata(folder)
    rows, source = (_parquet_rows if parquet else _metadata_rows)(parts, columns)
    if not rows:
        raise ValueError(f"{', '.join(str(file) for _, file in parts)}: there is no row, one is needed for every edit")
    triples = pd.DataFrame(rows)
    if not {"train", "test"} <= {split for split, _ in parts}:
        triples["split"] = [dealt(family, held_out) for family in triples["family"]]
    else:
        _check_splits(triples, source, folder)
    order = ["source", "target", "instruction", "edit", "value", "family", "split"]
    return PhotoEdits(Pictures(source, image_size, cropped), triples[order])


def _check_splits(triples: pd.DataFrame, source: Source, folder: Path) -> None:
    """Raises ValueError where the part test is the part train over again: the same texts of the same pictures."""
    texts = list(triples[["family", "instruction", "edit", "value"]].itertuples(index=False, name=None))
    number = dict(zip(zip(triples["split"], texts, strict=True), triples["source"], strict=True))
    tested = {text: place for (split, text), place in number.items() if split == "test"}
    pairs = [(number["train", text], place) for text, place in tested.items() if ("train", text) in number]
    if not tested or len(pairs) < len(tested):
        return
    if all(source[one].tobytes() == source[other].tobytes() for one, other in pairs[:SAME]):
        raise ValueError(f"folder {folder}: the {len(tested)} triples of test are those of train: hold others out")


def _row(row: Mapping[str, object], where: str, columns: Mapping[str, str], family: str, split: str) -> dict[str, str]:
    """What a triple says beside its pictures."""
    text = row.get(columns["instruction"])
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: {columns['instruction']}={text!r} must be an instruction, a text that is not empty")
    defaults = {"edit": "edit", "value": "", "family": family}
    texts = {name: str(row.get(name) or default) for name, default in defaults.items()}
    return {"instruction": text.strip(), "split": split} | texts


def _metadata(folder: Path) -> list[tuple[str, Path]]:
    """(split, metadata file) of the folder itself, else of its parts."""
    for parts in ({".": ""}, SPLITS):
        files = {part: [name for name in METADATA if (folder / part / name).is_file()] for part in parts}
        if any(files.values()):
            return [(parts[part], folder / part / names[0]) for part, names in files.items() if names]
    raise ValueError(
        f"folder {folder} holds no edit triples: put metadata.csv or metadata.jsonl with the pictures, or parquet "
        "files, into it or into its folders train and test"
    )


def _metadata_rows(parts: list[tuple[str, Path]], columns: Mapping[str, str]) -> tuple[list[dict], Source]:
    number: dict[Path, int] = {}
    rows = []
    for split, file in parts:
        for line, row in enumerate(_read_metadata(file), start=1):
            where = f"{file.parent.name}/{file.name}, row {line}"
            ends = {end: _picture_path(row, columns[end], where) for end in ("source", "target")}
            numbers = {end: number.setdefault(file.parent / path, len(number)) for end, path in ends.items()}
            rows.append(numbers | _row(row, where, columns, ends["source"], split))
    return rows, FileSource(list(number), parts[0][1].parent if len(parts) == 1 else parts[0][1].parent.parent)


def _read_metadata(file: Path) -> list[dict]:
    """The rows as the file has them: `datasets` would guess types, so that a family 007 is 7 and a date a time."""
    if file.suffix == ".csv":
        return _csv_rows(file)
    lines = read_text(file).splitlines()
    return [_object(text, f"{file}, line {line},") for line, text in enumerate(lines, start=1)]


def _csv_rows(file: Path) -> list[dict]:
    """Raises ValueError for a column that is there twice, a row of more cells than columns, and a cell over 128 kB."""
    table = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        names = list(table.fieldnames or ())
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{file}: column {twice[0]!r} is there {names.count(twice[0])} times, leave one of them")
        rows = list(table)
    except csv.Error as error:
        raise ValueError(f"{file}, line {table.line_num}, is no row of a CSV table ({error})") from None
    for line, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"{file}, row {line}, has more cells than there are columns: quote texts with commas")
    return rows


def _object(text: str, where: str) -> dict:
    row = parsed(text, where)
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {type(row).__name__}: each line must be one object")
    return row


def _picture_path(row: Mapping[str, object], column: str, where: str) -> str:
    for name in (column, f"{column}_file_name"):
        if name in row:
            return inner_path(row[name], f"{where}: {name}")
    raise ValueError(f"{where}: column {column!r} is missing (there are {', '.join(map(str, row))}): {ADVICE}")


def _parquet_rows(parts: list[tuple[str, Path]], columns: Mapping[str, str]) -> tuple[list[dict], Source]:
    from lib.data.parquet import read_parquet

    rows, sources, ends = [], [], [columns["source"], columns["target"]]
    for split, file in parts:
        texts, cells = read_parquet(file, [columns["instruction"]], ends, ADVICE, ("edit", "value", "family"))
        sources.append(cells)
        for line, (row, path) in enumerate(zip(texts, cells.names(columns["source"]), strict=True)):
            numbers = {"source": 2 * len(rows), "target": 2 * len(rows) + 1}
            rows.append(numbers | _row(row, f"{file.name}, row {line}", columns, path, split))
    return rows, ConcatDataset(sources)
