"""Edit triples from folders and parquet files: the right pictures, splits without a leak, helpful refusals."""

import io
import json
import os

import numpy as np
import photos
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from lib.data.photo_edits import load_edits
from lib.data.pictures import GREY, FileSource, Pictures, cropped, padded, pixels

LAYOUTS = ("csv", "jsonl", "file_name", "parquet", "parquet without paths")


def made(folder, layout: str, edits=photos.EDITS):
    if layout.startswith("parquet"):
        photos.edit_parquet(folder / "data" / "train-00000-of-00001.parquet", edits, paths=layout == "parquet")
        return folder
    suffix = "_file_name" if layout == "file_name" else ""
    return photos.edit_folder(folder, "metadata.jsonl" if layout == "jsonl" else "metadata.csv", edits, suffix)


def colour(picture: torch.Tensor) -> str:
    """The name of a plain picture's colour; fails where it is not plain."""
    assert (picture == picture[:, :1, :1]).all()
    return {values: name for name, values in photos.COLOURS.items()}[tuple((picture[:, 0, 0] * 255).round().tolist())]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_and_instructions_belong_together(tmp_path, layout):
    data = load_edits(str(made(tmp_path, layout)), 32)
    assert list(data.triples.columns) == ["source", "target", "instruction", "edit", "value", "family", "split"]
    found = []
    for row in data.triples.itertuples():
        source, target = data.pictures(torch.tensor([row.source, row.target]))
        found.append((colour(source), row.instruction, colour(target)))
    assert found == photos.EDITS
    assert set(data.triples["edit"]) == {"edit"} and set(data.triples["value"]) == {""}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_picture_is_on_one_side_of_the_split(tmp_path, layout):
    """Of many edits of six sources, those of a source stay together, and some are held out."""
    edits = [(a, f"make it {b}, {k}", b) for a in photos.COLOURS for k, b in enumerate(photos.COLOURS) if a != b]
    triples = load_edits(str(made(tmp_path, layout, edits)), 32, held_out=0.5).triples
    sides = triples.assign(name=[a for a, _, _ in edits]).groupby("name")["split"].agg(set)
    assert all(len(side) == 1 for side in sides)
    assert set().union(*sides) == {"train", "test"}


def test_the_family_column_joins_pictures_of_one_person(tmp_path):
    folder = photos.edit_folder(tmp_path, family=["7", "7", "8", "7"], edit=["hair", "", "hair", "age"])
    triples = load_edits(str(folder), 32).triples
    assert triples["family"].tolist() == ["7", "7", "8", "7"]
    assert triples["edit"].tolist() == ["hair", "edit", "hair", "age"]
    assert triples.groupby("family")["split"].nunique().max() == 1


@pytest.mark.parametrize("held", ["test", "validation"])
def test_parts_of_the_data_set_are_its_splits(tmp_path, held):
    for part, edits in (("train", photos.EDITS[:3]), (held, photos.EDITS[3:])):
        photos.edit_folder(tmp_path / "folder" / part, edits=edits)
        photos.edit_parquet(tmp_path / "cells" / "data" / f"{part}-00000-of-00001.parquet", edits)
    for layout in ("folder", "cells"):
        triples = load_edits(str(tmp_path / layout), 32).triples
        by_split = {split: own["instruction"].tolist() for split, own in triples.groupby("split")}
        texts = [text for _, text, _ in photos.EDITS]
        assert by_split == {"train": texts[:3], "test": texts[3:]}


def test_columns_may_have_other_names(tmp_path):
    names = {"source": "original_image", "instruction": "edit", "target": "edited_image"}
    photos.edit_parquet(tmp_path / "train-0.parquet", columns=tuple(names.values()))
    assert load_edits(str(tmp_path), 32, columns=names).triples["instruction"][0] == "make it green"
    with pytest.raises(ValueError, match="column 'edit_prompt' is missing .*original_image.*: name the data set's own"):
        load_edits(str(tmp_path), 32)


@pytest.mark.parametrize(
    ("part", "message"), [("gone", "must be a folder that exists or a hub id"), (".", "no edit triples")]
)
def test_a_folder_without_data_is_refused(tmp_path, part, message):
    with pytest.raises(ValueError, match=message):
        load_edits(str(tmp_path / part), 32)


def test_a_missing_picture_is_named_before_any_work(tmp_path):
    folder = photos.edit_folder(tmp_path)
    (folder / "faces" / "blue-red.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 7 pictures are missing, the first is .*blue-red.png: copy them there"):
        load_edits(str(folder), 32)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../up.png,brighter,faces/red.png", r"row 1: input_image='../up.png' must be a path below the folder"),
        ("/etc/up.png,brighter,faces/red.png", "must be a path below the folder"),
        ("faces/red.png, ,faces/red.png", "row 1: edit_prompt=' ' must be an instruction"),
        ("faces/red.png,brighter", "row 1: edited_image=None must be a path"),
    ],
)
def test_a_row_that_is_no_edit_is_named(tmp_path, row, message):
    folder = photos.edit_folder(tmp_path)
    (folder / "metadata.csv").write_text(f"input_image,edit_prompt,edited_image\n{row}\n")
    with pytest.raises(ValueError, match=message):
        load_edits(str(folder), 32)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "image,text\na,b\n", r"column 'input_image' is missing \(there are image, text\)"),
        ("metadata.csv", "input_image,edit_prompt,edited_image\n", "there is no row, one is needed for every edit"),
        ("metadata.jsonl", '{"input_image": \n', "metadata.jsonl, line 1, is no JSON"),
        ("metadata.jsonl", "[1]\n", "line 1, is list: each line must be one object"),
        ("train-0.parquet", "version https://git-lfs", "is no parquet file .*: download it again"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_edits(str(tmp_path), 32)


def test_a_parquet_file_without_a_row_adds_none(tmp_path):
    photos.edit_parquet(tmp_path / "train-1.parquet", [])
    with pytest.raises(ValueError, match="there is no row, one is needed for every edit"):
        load_edits(str(tmp_path), 32)
    photos.edit_parquet(tmp_path / "train-2.parquet")
    assert len(load_edits(str(tmp_path), 32).triples) == len(photos.EDITS)


def test_a_column_that_holds_no_pictures_is_refused(tmp_path):
    rows = {"input_image": ["a.png"], "edit_prompt": ["brighter"], "edited_image": ["b.png"]}
    parquet.write_table(pa.table(rows), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match="column 'input_image' is string, not a picture"):
        load_edits(str(tmp_path), 32)


def test_cells_and_files_that_are_no_pictures_are_named(tmp_path):
    file = photos.edit_parquet(tmp_path / "cells" / "train-0.parquet")
    rows = parquet.read_table(file).to_pylist()
    rows[3]["input_image"], rows[1]["edited_image"] = {"bytes": b"GIF89a", "path": "x"}, {"bytes": None, "path": "y"}
    parquet.write_table(pa.Table.from_pylist(rows, parquet.read_schema(file)), file, row_group_size=3)
    data = load_edits(str(tmp_path / "cells"), 32)
    with pytest.raises(ValueError, match="train-0.parquet, row 3, column 'input_image' cannot be read"):
        data.pictures(torch.tensor(data.triples["source"].to_numpy()))
    with pytest.raises(ValueError, match="row 1, column 'edited_image' holds no picture"):
        data.pictures(torch.tensor(data.triples["target"][1:2].to_numpy()))
    folder = photos.edit_folder(tmp_path / "files")
    (folder / "faces" / "red.png").write_bytes(photos.png(photos.image("red"))[:60])
    data = load_edits(str(folder), 32)
    with pytest.raises(ValueError, match="red.png cannot be read"):
        data.pictures(torch.tensor(data.triples["source"][:1].to_numpy()))


def test_a_cell_opens_nothing_but_its_own_bytes(tmp_path):
    """Not the file that it names, whatever kind of column the parquet file says it is."""
    file = photos.edit_parquet(tmp_path / "data" / "train-0.parquet")
    photos.image("red").save(tmp_path / "there.png")
    rows = parquet.read_table(file).to_pylist()
    rows[0]["input_image"] = {"bytes": None, "path": str(tmp_path / "there.png")}
    wide = io.BytesIO()
    photos.image("red", 90, 30, middle="blue").crop((0, 0, 60, 30)).save(wide, "PNG")
    rows[1]["input_image"] = {"bytes": wide.getvalue(), "path": "wide.png"}
    kinds = {"input_image": {"_type": "Image"}, "edit_prompt": {"_type": "Value", "dtype": "string"}}
    told = {"huggingface": json.dumps({"info": {"features": kinds | {"edited_image": {"_type": "Image"}}}})}
    schema = parquet.read_schema(file).with_metadata(told)
    parquet.write_table(pa.Table.from_pylist(rows, schema), file)
    data = load_edits(str(file.parent), 30)
    with pytest.raises(ValueError, match="row 0, column 'input_image' holds no picture"):
        data.pictures(torch.tensor([0]))
    read = Image.open(wide)
    assert (data.pictures.read(torch.tensor([2]))[0].numpy() == pixels(cropped(read), 30)).all()


def test_a_parquet_file_is_copied_once_and_into_the_users_cache_alone(tmp_path):
    """Its copy serves the next reading, and names with brackets are no patterns."""
    file = photos.edit_parquet(tmp_path / "data [1]" / "train-0.parquet")
    before = set(photos.CACHE.rglob("*.arrow"))
    first = load_edits(str(file.parent), 32)
    (copy,) = set(photos.CACHE.rglob("*.arrow")) - before
    written = copy.stat().st_mtime_ns
    again = load_edits(str(file.parent), 32)
    assert set(photos.CACHE.rglob("*.arrow")) - before == {copy} and copy.stat().st_mtime_ns == written
    assert again.triples.equals(first.triples) and list(tmp_path.rglob("*")) == [file.parent, file]


def test_pictures_come_in_the_order_asked_for(tmp_path):
    photos.edit_parquet(tmp_path / "train-00000.parquet")
    photos.edit_parquet(tmp_path / "train-00001.parquet", photos.EDITS[::-1])
    data = load_edits(str(tmp_path), 32)
    asked = torch.tensor([15, 0, 8, 15, 9])
    assert [colour(picture) for picture in data.pictures(asked)] == ["green", "red", "green", "green", "white"]
    assert data.pictures(asked[:0]).shape == (0, 3, 32, 32)
    for index in (-1, len(data.pictures)):
        with pytest.raises(IndexError, match=f"picture {index} is out of range"):
            data.pictures(torch.tensor([index]))


def test_edits_are_cropped_and_questions_padded(tmp_path):
    wide = photos.image("red", 120, 40, middle="blue")
    middle = pixels(cropped(wide), 40)
    assert (middle[:, 10:30, 10:30] == pixels(photos.image("blue"), 20)).all()
    assert (middle[:, :10] == pixels(photos.image("red"), 40)[:, :10]).all()
    whole = pixels(padded(wide), 120)
    assert (whole[:, 40:80].transpose(1, 2, 0) == wide).all()
    assert (whole[:, :40].transpose(1, 2, 0) == GREY).all() and (whole[:, 80:].transpose(1, 2, 0) == GREY).all()


def test_small_pictures_are_antialiased_and_of_three_channels(tmp_path):
    """One-pixel stripes become an even grey; a palette and an alpha channel become RGB."""
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = pixels(Image.fromarray(stripes), 8)
    assert abs(small[:, :, 1:-1].astype(int) - 127).max() < 8
    white = photos.image("white")
    for mode, picture in {"P": white.quantize(2), "RGBA": white.convert("RGBA"), "L": white.convert("L")}.items():
        picture.save(tmp_path / f"{mode}.png")
        assert Image.open(tmp_path / f"{mode}.png").mode == mode
    read = Pictures(FileSource(sorted(tmp_path.iterdir())), 16, cropped).read(torch.arange(3))
    assert read.dtype == torch.uint8 and (read == 250).all()


def test_a_test_set_that_is_the_training_set_is_refused(tmp_path):
    for part in ("train", "test"):
        photos.edit_folder(tmp_path / "folder" / part)
        photos.edit_parquet(tmp_path / "cells" / f"{part}-0.parquet")
    for layout in ("folder", "cells"):
        with pytest.raises(ValueError, match=r"the 4 triples of test are those of train: hold others out"):
            load_edits(str(tmp_path / layout), 32)
    for file in (tmp_path / "folder" / "test" / "faces").iterdir():  # the same texts of other pictures
        photos.image("white", middle="red").save(file)
    assert len(load_edits(str(tmp_path / "folder"), 32).triples) == 8


LONG = "x" * 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input_image,edit_prompt,edited_image,edit_prompt\na,b,c,d\n", "column 'edit_prompt' is there 2 times"),
        ("input_image,edit_prompt,edited_image\na,warm, not cold,c\n", "row 1, has more cells than there are columns"),
        (f"input_image,edit_prompt,edited_image\na,{LONG},c\n", "line .*no row of a CSV table .field larger"),
        ("input_image,edit_prompt,edited_image\na,caf\xe9,c\n", "metadata.csv is not in UTF-8 .byte 42."),
    ],
)
def test_a_table_that_would_be_misread_is_named(tmp_path, text, message):
    (tmp_path / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as refusal:
        load_edits(str(tmp_path), 32)
    assert "metadata.csv" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_key_or_a_column_that_is_there_twice_is_refused(tmp_path):
    row = '{"input_image": "a", "edit_prompt": "b", "edited_image": "c", "edit_prompt": "d"}'
    (tmp_path / "metadata.jsonl").write_text(row)
    with pytest.raises(ValueError, match="line 1,: key 'edit_prompt' is there twice"):
        load_edits(str(tmp_path), 32)
    file = photos.edit_parquet(tmp_path / "cells" / "train-0.parquet")
    table = parquet.read_table(file)
    parquet.write_table(table.append_column("edit_prompt", table.column("edit_prompt")), file)
    with pytest.raises(ValueError, match="column 'edit_prompt' is there 2 times"):
        load_edits(str(file.parent), 32)


def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path):
    folder = photos.edit_folder(tmp_path / "folder")
    (folder / "faces" / "red.png").unlink()
    os.mkfifo(folder / "faces" / "red.png")
    with pytest.raises(ValueError, match="1 of 7 pictures are missing, the first is .*red.png"):
        load_edits(str(folder), 32)
    (tmp_path / "cells").mkdir()
    os.mkfifo(tmp_path / "cells" / "train-0.parquet")
    with pytest.raises(ValueError, match="train-0.parquet is no file"):
        load_edits(str(tmp_path / "cells"), 32)
    (tmp_path / "table").mkdir()
    os.mkfifo(tmp_path / "table" / "metadata.csv")
    with pytest.raises(ValueError, match="holds no edit triples"):
        load_edits(str(tmp_path / "table"), 32)
