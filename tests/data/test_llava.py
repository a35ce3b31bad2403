"""LLaVA's instruction sets from files in their published formats, and refusals that say what to do."""

import json
import os

import photos
import pytest
import torch

from lib.data.llava import load_llava


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


def test_empty_questions_and_answers_are_told_and_left_out(tmp_path):
    empty = [photos.llava_sample("a", "4.png", ["<image>\n ", "yes"]), photos.llava_sample("b", "4.png", ["why?", " "])]
    whole = load_llava(str(photos.llava_folder(tmp_path / "whole")), "train", 32, held_out=0.0).table
    with pytest.warns(UserWarning, match="2 samples have no text as question or answer and are left out"):
        data = load_llava(str(photos.llava_folder(tmp_path / "more", photos.LLAVA + empty)), "train", 32, held_out=0.0)
    assert data.table.equals(whole)


def test_a_file_that_is_none_or_in_another_encoding_is_named(tmp_path):
    folder = photos.llava_folder(tmp_path)
    file = folder / "llava_instruct_150k.json"
    file.write_bytes('[{"id": "caf\xe9"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match="llava_instruct_150k.json is not in UTF-8"):
        load_llava(str(folder), "train", 32)
    file.write_text('[{"id": "7", "image": "a.png", "image": "b.png"}]')
    with pytest.raises(ValueError, match="llava_instruct_150k.json: key 'image' is there twice"):
        load_llava(str(folder), "train", 32)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="llava_instruct_150k.json is missing"):
        load_llava(str(folder), "train", 32)
