"""MMMU from files in its published formats, asked as lmms-eval does."""


import photos
import pyarrow as pa
import pytest
import torch

from lib.data.mmmu import CHOICE_PROMPT, OPEN_PROMPT, load_mmmu, options_of


def colour(picture: torch.Tensor) -> str:
    """The name of a picture's colour in its middle."""
    middle = picture[:, picture.shape[1] // 2, picture.shape[2] // 2]
    return {values: name for name, values in photos.COLOURS.items()}[tuple((middle * 255).round().tolist())]


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
        ({"question": " "}, "validation_Math_1: question=' ' must be a text that is not empty"),
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
