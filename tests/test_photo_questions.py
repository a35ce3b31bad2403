"""LLaVA's instruction sets and MMMU from files in their published formats, and refusals that say what to do."""

import json

import photos
import pyarrow as pa
import pytest
import torch

from lib.data.llava import load_llava
from lib.data.mmmu import CHOICE_PROMPT, OPEN_PROMPT, load_mmmu, options_of


def colour(picture: torch.Tensor) -> str:
    """The name of a picture's colour in its middle."""
    middle = picture[:, picture.shape[1] // 2, picture.shape[2] // 2]
    return {values: name for name, values in photos.COLOURS.items()}[tuple((middle * 255).round().tolist())]


def both(folder, **more):
    return [load_llava(str(folder), split, 32, held_out=0.5, **more) for split in ("train", "test")]


def test_the_first_turn_of_a_sample_with_one_picture_is_a_question(tmp_path):
    found = set()
    for data in both(photos.llava_folder(tmp_path)):
        for row in data.table.itertuples():
            (picture,) = data.pictures(torch.tensor([row.image]))
            found.add((row.id, colour(picture), row.question, row.answer, row.kind))
    assert found == {
        ("1", "red", "What colour is it?", "It is red.", "coco"),
        ("1b", "red", "Name the colour.", "Red.", "coco"),
        ("2", "blue", "Is it blue?", "Yes.", "gqa"),
        ("3", "white", "What is it?", "A white wall.", "image"),
    }


def test_a_picture_is_on_one_side_of_the_split_and_kept_once(tmp_path):
    train, test = both(photos.llava_folder(tmp_path))
    assert len(train.table) and len(test.table)
    assert len(train.pictures) + len(test.pictures) == 3
    sides = [set(data.table["id"]) & {"1", "1b"} for data in (train, test)]
    assert sorted(map(len, sides)) == [0, 2]
    for data in (train, test):
        assert set(data.table["image"]) == set(range(len(data.pictures)))


def test_pictures_may_lie_elsewhere(tmp_path):
    folder = photos.llava_folder(tmp_path / "pictures")
    file = folder / "llava_instruct_150k.json"
    (tmp_path / "text").mkdir()
    file.rename(tmp_path / "text" / "mine.json")
    data = both(tmp_path / "text", file="mine.json", pictures=str(folder))
    assert sum(len(part.table) for part in data) == 4
    with pytest.raises(ValueError, match=r"pictures are missing, the first is .*: copy them there, or name the folder"):
        both(tmp_path / "text", file="mine.json")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"a": 1}, "holds a dict: it must be a list of samples"),
        ([{"id": "9", "image": "4.png"}], r"sample 0 \(id '9'\): conversations must be a list that begins with a turn"),
        ([photos.llava_sample("9", "4.png", ["only asked"])], "one from 'gpt'"),
        (
            [{"id": "9", "image": "4.png", "conversations": [{"role": "user"}, {"role": "assistant"}]}],
            "convert the file",
        ),
        ([photos.llava_sample("9", "../4.png", ["a", "b"])], "sample 0: image='../4.png' must be a path below"),
        ([{"id": "9", "image": "4.png", "conversations": ["a", "b"]}], "each with a text as value"),
        (photos.LLAVA[4:], "no sample with one picture for train"),
    ],
)
def test_samples_in_another_format_are_refused(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        load_llava(str(photos.llava_folder(tmp_path, samples)), "train", 32, held_out=0.0)


def test_a_missing_or_broken_instruction_file_is_named(tmp_path):
    folder = photos.llava_folder(tmp_path)
    with pytest.raises(ValueError, match="other.json is missing: put the instruction set's JSON file there"):
        load_llava(str(folder), "train", 32, file="other.json")
    (folder / "llava_instruct_150k.json").write_text(json.dumps(photos.LLAVA)[:-9])
    with pytest.raises(ValueError, match="llava_instruct_150k.json is no JSON .*: download it again"):
        load_llava(str(folder), "train", 32)
    with pytest.raises(ValueError, match="split='dev' must be 'train' or 'test'"):
        load_llava(str(folder), "dev", 32)


def test_mmmu_asks_as_lmms_eval_does(tmp_path):
    data = load_mmmu(str(photos.mmmu_folder(tmp_path)), 32)
    rows = data.table.set_index("id")
    assert rows.index.tolist() == ["validation_Accounting_1", "validation_Accounting_2", "validation_Art_Theory_1"]
    assert rows["kind"].tolist() == ["Accounting", "Accounting", "Art_Theory"]
    assert rows["question_type"].tolist() == ["multiple-choice", "open", "multiple-choice"]
    assert rows["answer"].tolist() == ["B", "30", "A"]
    assert rows["options"].tolist() == [("$6,000", "$7,000", "it's none", "$9,000"), (), ("<image 1>", "<image 3>")]
    assert rows["question"].tolist() == [
        f"<image 1> Baxter's total assets are\nA. $6,000\nB. $7,000\nC. it's none\nD. $9,000\n\n{CHOICE_PROMPT}",
        f"How many in <image 1>?\n\n{OPEN_PROMPT}",
        f"Which one follows <image 2>?\nA. <image 1>\nB. <image 3>\n\n{CHOICE_PROMPT}",
    ]
    shown = [[colour(picture) for picture in data.pictures(torch.tensor(images))] for images in rows["images"]]
    assert shown == [["red"], ["green"], ["blue", "white", "red"]]
    assert [images[0] for images in rows["images"]] == rows["image"].tolist()


def test_mmmu_merged_into_one_file_is_the_same(tmp_path):
    """The layout of lmms-lab/MMMU: all subjects in one file, here in two row groups."""
    rows = [row for rows in photos.MMMU.values() for row in rows]
    photos.mmmu_file(tmp_path / "merged" / "data" / "validation-00000-of-00001.parquet", rows)
    merged, apart = load_mmmu(str(tmp_path / "merged"), 32), load_mmmu(str(photos.mmmu_folder(tmp_path / "apart")), 32)
    assert merged.table.equals(apart.table)
    shown = torch.tensor(merged.table["image"].to_numpy())
    assert torch.equal(merged.pictures(shown), apart.pictures(shown))


def test_mmmu_options_are_a_literal_and_never_run(tmp_path):
    for text in ("__import__('os').getcwd()", "['a', 1]", "('a', 'b')", "['a'", None, "[" * 10_000):
        with pytest.raises(ValueError, match=r"validation_Math_1: options=.* must be a list of texts"):
            options_of(text, "validation_Math_1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": "A, B"}, "validation_Math_1: options='A, B' must be a list of texts"),
        ({"id": "Math-1"}, "id='Math-1' must read as 'validation_Accounting_1' does"),
        ({"question": "What of <image 2>?"}, r"the question must name pictures that its row holds, not \['2'\]"),
        ({"question": "What?"}, "must name pictures that its row holds"),
        ({"question": "What of <image 9>?"}, "must name pictures that its row holds"),
        ({"question_type": "essay"}, "question_type='essay' must be 'multiple-choice' or 'open'"),
        ({"question": None}, "validation_Math_1: question=None must be a text"),
        ({"answer": None}, "validation_Math_1: answer=None must be a text"),
    ],
)
def test_mmmu_rows_in_another_format_are_refused(tmp_path, change, message):
    row = photos.mmmu_row("validation_Math_1", "Of <image 1>?", "['1', '2']", "A", image_1=photos.image("red")) | change
    photos.mmmu_file(tmp_path / "validation-0.parquet", [row])
    with pytest.raises(ValueError, match=message):
        load_mmmu(str(tmp_path), 32)


def test_mmmu_files_in_another_format_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no file validation-\*.parquet: download that split"):
        load_mmmu(str(tmp_path), 32)
    rows = photos.MMMU["Accounting"]
    for column in ("options", "image_7"):
        kept = pa.schema([field for field in photos.MMMU_SCHEMA if field.name != column])
        photos.mmmu_file(tmp_path / "validation-0.parquet", rows, kept)
        with pytest.raises(ValueError, match=f"column '{column}' is missing .*: use MMMU's own files"):
            load_mmmu(str(tmp_path), 32)
