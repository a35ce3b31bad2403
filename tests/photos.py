"""Photographs made up, in the published layouts: edit triples, LLaVA's JSON, MMMU's parquet files.

Copies that `datasets` makes of them go with the process, and not into the cache of whoever runs the tests.
"""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import config
from PIL import Image
from pyarrow import parquet

_cache = tempfile.TemporaryDirectory(prefix="datasets-")
config.HF_DATASETS_CACHE = CACHE = Path(_cache.name)
os.environ["HF_DATASETS_CACHE"] = _cache.name  # for the processes that a test starts

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "white": (250, 250, 250)}


def image(colour: str, width: int = 80, height: int = 60, middle: str | None = None) -> Image.Image:
    """A plain picture, its middle square (of half the height) in another colour where one is given."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:] = COLOURS[colour]
    if middle:
        top, left = height // 4, width // 2 - height // 4
        pixels[top : top + height // 2, left : left + height // 2] = COLOURS[middle]
    return Image.fromarray(pixels)


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def cell(picture: Image.Image | None, path: str | None = None) -> dict | None:
    return None if picture is None else {"bytes": png(picture), "path": path}


EDITS = [
    ("red", "make it green", "green"),
    ("red", "make it blue", "blue"),
    ("blue", "make it red", "red"),
    ("green", "make it white", "white"),
]


def edit_folder(folder: Path, kind: str = "metadata.csv", edits=EDITS, suffix: str = "", **more) -> Path:
    """Edits as picture files and a metadata file; `more` are further columns, one value an edit."""
    (folder / "faces").mkdir(parents=True, exist_ok=True)
    rows = []
    for k, (source, text, target) in enumerate(edits):
        names = f"faces/{source}.png", f"faces/{source}-{target}.png"
        for name, colour in zip(names, (source, target), strict=True):
            image(colour).save(folder / name)
        row = {f"input_image{suffix}": names[0], "edit_prompt": text, f"edited_image{suffix}": names[1]}
        rows.append(row | {column: values[k] for column, values in more.items()})
    with (folder / kind).open("w", newline="") as stream:
        if kind.endswith(".jsonl"):
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def edit_parquet(file: Path, edits=EDITS, paths: bool = True, columns=("input_image", "edit_prompt", "edited_image")):
    """The same edits as one parquet file of row groups of three rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    source, text, target = columns
    schema = pa.schema([(source, PICTURE), (text, pa.string()), (target, PICTURE)])
    rows = [
        {source: cell(image(a), f"{a}.png" if paths else None), text: words, target: cell(image(b))}
        for a, words, b in edits
    ]
    parquet.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=3)
    return file


def llava_sample(name: str, picture, turns) -> dict:
    said = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(turns)]
    return {"id": name, "image": picture, "conversations": said}


LLAVA = [
    llava_sample("1", "coco/train2017/1.png", ["<image>\nWhat colour is it?", "It is red.", "Why?", "Paint."]),
    llava_sample("2", "gqa/2.png", ["Is it blue?\n<image>", "Yes."]),
    llava_sample("1b", "coco/train2017/1.png", ["<image>\nName the colour.", "Red."]),
    llava_sample("3", ["4.png"], ["<image>\nWhat is it?", "A white wall."]),
    {"id": "text", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
    llava_sample("two", ["gqa/2.png", "4.png"], ["<image><image> Compare.", "They differ."]),
]


def llava_folder(folder: Path, samples=LLAVA) -> Path:
    for name, colour in (("coco/train2017/1.png", "red"), ("gqa/2.png", "blue"), ("4.png", "white")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image(colour).save(folder / name)
    (folder / "llava_instruct_150k.json").write_text(json.dumps(samples))
    return folder


TEXTS = (
    "id",
    "question",
    "options",
    "explanation",
    "img_type",
    "answer",
    "topic_difficulty",
    "question_type",
    "subfield",
)
IMAGES = tuple(f"image_{k}" for k in range(1, 8))
MMMU_SCHEMA = pa.schema([*((name, pa.string()) for name in TEXTS), *((name, PICTURE) for name in IMAGES)])


def mmmu_row(name: str, question: str, options: str, answer: str, **pictures) -> dict:
    kind = "multiple-choice" if options != "[]" else "open"
    row = dict.fromkeys(TEXTS, "") | dict.fromkeys(IMAGES)
    row |= {"id": name, "question": question, "options": options, "answer": answer, "question_type": kind}
    return row | {column: cell(picture) for column, picture in pictures.items()}


MMMU = {
    "Accounting": [
        mmmu_row(
            "validation_Accounting_1",
            "<image 1> Baxter's total assets are",
            "['$6,000', '$7,000', \"it's none\", '$9,000']",
            "B",
            image_1=image("red"),
        ),
        mmmu_row("validation_Accounting_2", "How many in <image 1>?", "[]", "30", image_1=image("green")),
    ],
    "Art_Theory": [
        mmmu_row(
            "validation_Art_Theory_1",
            "Which one follows <image 2>?",
            "['<image 1>', '<image 3>']",
            "A",
            image_1=image("blue"),
            image_2=image("white", 40, 100),
            image_3=image("red"),
        ),
    ],
}


def mmmu_file(file: Path, rows, schema=MMMU_SCHEMA) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, schema), file)
    return file


def mmmu_folder(folder: Path) -> Path:
    """A folder a subject, as in MMMU/MMMU; another split beside the validation one."""
    for subject, rows in MMMU.items():
        mmmu_file(folder / subject / "validation-00000-of-00001.parquet", rows)
        mmmu_file(folder / subject / "dev-00000-of-00001.parquet", rows[:1])
    return folder
