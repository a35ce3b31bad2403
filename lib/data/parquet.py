"""Parquet files as the hub stores data sets: texts, and pictures as structs of `bytes` and `path`."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow
from PIL import Image
from pyarrow import parquet

from lib.data.pictures import opened


def check_columns(file: Path, texts: Sequence[str], pictures: Sequence[str], advice: str) -> list[str]:
    """The names of all columns. Raises ValueError, ending in `advice`, unless those texts and pictures are there."""
    schema = _file(file).schema_arrow
    for column in (*texts, *pictures):
        if column not in schema.names:
            there = ", ".join(schema.names)
            raise ValueError(f"{file.name}: column {column!r} is missing (there are {there}): {advice}")
    for column in pictures:
        kind = schema.field(column).type
        fields = {kind.field(k).name for k in range(kind.num_fields)}
        if not {"bytes", "path"} <= fields:
            raise ValueError(f"{file.name}: column {column!r} is {kind}, not a picture of bytes and path: {advice}")
    return schema.names


def read_rows(file: Path, columns: Sequence[str]) -> list[dict]:
    """The rows of a file; of a picture column `x` ask for "x.path", so that the pictures stay on the disk."""
    return _file(file).read(columns=list(columns)).to_pylist()


def picture_names(file: Path, column: str) -> list[str]:
    """For every row the path that its picture had; where any has none, the digests of their bytes."""
    paths = [(row[column] or {}).get("path") for row in read_rows(file, [f"{column}.path"])]
    if all(paths):
        return paths
    batches = _file(file).iter_batches(64, columns=[column])
    cells = (cell or {} for batch in batches for cell in batch.column(0).to_pylist())
    return [hashlib.sha256(cell.get("bytes") or b"").hexdigest() for cell in cells]


@dataclass(frozen=True)
class ParquetSource:
    """The pictures of some columns, row by row: picture `row · len(columns) + column`.

    A read takes in whole row groups, each once, and keeps none.
    """

    files: Sequence[Path]
    columns: Sequence[str]

    @cached_property
    def groups(self) -> list[tuple[int, Path, int]]:
        """First row, file and number of every row group; last, where the next one would begin."""
        found, first = [], 0
        for file in self.files:
            about = _file(file).metadata
            for number in range(about.num_row_groups):
                found.append((first, file, number))
                first += about.row_group(number).num_rows
        return [*found, (first, Path(), 0)]

    def __len__(self) -> int:
        return self.groups[-1][0] * len(self.columns)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """Raises ValueError for an empty cell and for one that is no picture."""
        wanted = defaultdict(set)
        for index in set(indices):
            row, column = divmod(index, len(self.columns))
            wanted[bisect_right(self.groups, row, key=lambda group: group[0]) - 1].add((row, column))
        found = {}
        for place, cells in wanted.items():
            first, file, number = self.groups[place]
            columns = [self.columns[column] for column in sorted({column for _, column in cells})]
            table = _file(file).read_row_group(number, columns=columns)
            for row, column in cells:
                cell = table.column(self.columns[column])[row - first].as_py() or {}
                name = f"{file.name}, row {row - first} of row group {number}, column {self.columns[column]!r}"
                if not cell.get("bytes"):
                    raise ValueError(f"{name} holds no picture: download the file again or use another data set")
                found[row * len(self.columns) + column] = opened(io.BytesIO(cell["bytes"]), name)
        return [found[index] for index in indices]


def _file(file: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file} is no parquet file ({reason}): download it again (a git clone without LFS leaves pointers)"
        ) from None
