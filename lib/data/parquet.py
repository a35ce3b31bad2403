"""Parquet files as the hub stores data sets: texts, and pictures as structs of `bytes` and `path`.

`datasets` copies the columns that are read as Arrow into the user's cache (`HF_DATASETS_CACHE`), once a file: pictures
take their own size on the disk again. In return one is read alone, where parquet decodes the row group that it is in.
"""

from __future__ import annotations

import glob
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from datasets import Dataset, Features, config
from datasets.exceptions import DatasetGenerationError
from PIL import Image
from pyarrow import parquet

from lib.data.pictures import opened


@dataclass(frozen=True)
class Cells:
    """The pictures of some columns of a file, row by row: picture `row · len(columns) + column`.

    They are kept as bytes: `datasets`' own decoding opens any path or address that a cell names.
    """

    file: Path
    columns: Sequence[str]
    rows: Dataset

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> Image.Image:
        """Raises ValueError for an empty cell and for one that is no picture."""
        row, column = divmod(index, len(self.columns))
        name = f"{self.file.name}, row {row}, column {self.columns[column]!r}"
        encoded = self.rows[f"{self.columns[column]}.bytes"][row]
        if not encoded:
            raise ValueError(f"{name} holds no picture: download the file again or use another data set")
        return opened(io.BytesIO(encoded), name)

    def held(self, row: int) -> set[str]:
        """The columns that hold anything in that row."""
        return {name for name in self.columns if self.rows.data.column(f"{name}.bytes")[row].is_valid}

    def names(self, column: str) -> list[str]:
        """For every row the path that its picture had; where any has none, the digests of their bytes."""
        paths = self.rows[f"{column}.path"][:]
        if all(paths):
            return paths
        return [hashlib.sha256(encoded or b"").hexdigest() for encoded in self.rows[f"{column}.bytes"]]


def read_parquet(
    file: Path, texts: Sequence[str], pictures: Sequence[str], advice: str, optional: Sequence[str] = ()
) -> tuple[list[dict], Cells]:
    """The texts of every row, the optional ones where the file has them, and the pictures.

    Raises ValueError, ending in `advice`, unless these columns are there, and for a file that cannot be read.
    """
    if not file.is_file():  # a pipe would be waited for
        raise ValueError(f"{file} is no file: {advice}")
    try:
        with parquet.ParquetFile(file) as head:
            schema, count = head.schema_arrow, head.metadata.num_rows
        _check(schema, texts, pictures, f"{file.name}: column", advice)
        texts = list(dict.fromkeys([*texts, *(name for name in optional if name in schema.names)]))
        # Of the plain types: features that the file itself names could decode, or open, anything.
        plain = pyarrow.schema([(name, schema.field(name).type) for name in (*texts, *pictures)])
        features, path = Features.from_arrow_schema(plain), glob.escape(str(file.absolute()))
        if count:
            rows = Dataset.from_parquet(path, columns=plain.names, features=features, batch_size=64)
        else:  # which `datasets` refuses
            rows = Dataset.from_dict({name: [] for name in plain.names}, features)
    except (pyarrow.ArrowException, DatasetGenerationError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"{file} is no parquet file that {config.HF_DATASETS_CACHE} can hold a copy of ({reason}): download it "
            "again (a git clone without LFS leaves pointers), or make room there"
        ) from None
    return rows.select_columns(texts).to_list(), Cells(file, pictures, rows.select_columns(list(pictures)).flatten())


def _check(schema: pyarrow.Schema, texts: Sequence[str], pictures: Sequence[str], where: str, advice: str) -> None:
    for name in (*texts, *pictures):
        if schema.names.count(name) > 1:
            raise ValueError(f"{where} {name!r} is there {schema.names.count(name)} times: leave one of them")
        if name not in schema.names:
            raise ValueError(f"{where} {name!r} is missing (there are {', '.join(schema.names)}): {advice}")
    for name in pictures:
        kind = schema.field(name).type
        if not {"bytes", "path"} <= {kind.field(k).name for k in range(kind.num_fields)}:
            raise ValueError(f"{where} {name!r} is {kind}, not a picture of bytes and path: {advice}")
