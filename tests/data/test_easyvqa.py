"""easy-VQA with sentence answers: every sentence, label and picture of both splits agrees."""

import re
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from lib.data.easyvqa import COLOURS, KINDS, SHAPES, blind_prior, kind_of, read_easyvqa, read_picture, sentence

SIZES = {"train": (4_000, 38_575), "test": (1_000, 9_673)}


@pytest.fixture(scope="module", params=["train", "test"])
def split(request):
    return request.param, tiny.easyvqa(request.param)


def truth(question: str, shape: str, colour: str) -> str:
    """The label of a question about a picture, by its wording alone."""
    if "what color" in question or "the color of" in question:
        return colour
    if question.startswith("what"):
        return shape
    asked = [word for word in re.findall("[a-z]+", question) if word in SHAPES + COLOURS]
    assert len(asked) == 1, question
    negated = re.search(r"\b(not|no)\b", question) is not None
    return "yes" if (asked[0] in (shape, colour)) != negated else "no"


def test_every_question_has_the_answer_that_the_picture_gives(split):
    """Both the label and the sentence follow from the caption's shape and colour, for every question."""
    name, data = split
    pictures, count = SIZES[name]
    assert data.images.shape == (pictures, 3, 64, 64) and str(data.images.dtype) == "torch.uint8"
    assert len(data.table) == count and set(data.table["image"]) == set(range(pictures))
    assert data.table.groupby("image")["caption"].nunique().max() == 1
    for row in data.table.itertuples():
        _, colour, shape = row.caption.split()
        assert shape in SHAPES and colour in COLOURS
        assert row.label == truth(row.question, shape, colour), row
        if row.label in ("yes", "no"):
            assert (row.answer, row.kind) == (f"{row.label}, it is a {colour} {shape}", "yes/no")
        elif row.label == colour:
            assert (row.answer, row.kind) == (f"the color is {colour}", "color")
        else:
            assert (row.answer, row.kind) == (f"the shape is a {shape}", "shape")


def test_there_are_13_labels_of_three_kinds(split):
    _, data = split
    assert set(data.table["label"]) == {*SHAPES, *COLOURS, "yes", "no"} and len(set(data.table["label"])) == 13
    assert set(data.table["kind"]) == set(KINDS)
    assert data.table["label"].map(kind_of).equals(data.table["kind"])
    captions = data.captions()
    assert len(captions) == len(data.images)
    assert captions[17] == data.table.loc[data.table["image"] == 17, "caption"].iloc[0]


def test_pixels_agree_with_all_that_the_questions_tell(split):
    """On every picture, `read_picture` says what its questions, where they do, tell of shape and colour."""
    _, data = split
    told = defaultdict(set)
    for row in data.table.itertuples():
        named = [word for word in re.findall("[a-z]+", row.question) if word in SHAPES + COLOURS]
        if row.label in SHAPES + COLOURS:
            told[row.image].add(row.label)
        elif row.label == truth(row.question, named[0], named[0]):
            told[row.image].add(named[0])
    assert len(told) > 0.8 * len(data.images)
    for image, words in told.items():
        assert words <= set(read_picture(data.images[image].numpy())), (image, words)


def test_pictures_are_those_of_the_package(split):
    """Picture k belongs to the k-th file name in order; compared with the files for a few."""
    import easy_vqa
    from PIL import Image

    name, data = split
    paths = easy_vqa.get_train_image_paths() if name == "train" else easy_vqa.get_test_image_paths()
    questions = easy_vqa.get_train_questions() if name == "train" else easy_vqa.get_test_questions()
    ids = sorted(paths)
    for k in (0, 11, 999):
        file = np.asarray(Image.open(paths[ids[k]]).convert("RGB"))
        assert (data.images[k].permute(1, 2, 0).numpy() == file).all()
        own = [question for question, _, image in zip(*questions, strict=True) if image == ids[k]]
        assert data.table.loc[data.table["image"] == k, "question"].tolist() == own
    floats = data.pictures(torch.tensor([999, 0]))
    assert torch.equal((floats * 255).round().to(torch.uint8), data.images[[999, 0]])


@pytest.mark.parametrize(
    ("label", "expected"),
    [("circle", "the shape is a circle"), ("red", "the color is red"), ("no", "no, it is a red circle")],
)
def test_sentence(label, expected):
    assert sentence(label, "circle", "red") == expected


def test_blind_prior_is_the_usual_label_of_a_question():
    """Counted by hand over the real data; where two labels are as usual, either may be taken."""
    train, test = tiny.easyvqa("train").table, tiny.easyvqa("test").table
    counts = defaultdict(Counter)
    for question, label in zip(train["question"], train["label"], strict=True):
        counts[question][label] += 1
    right, sure = blind_prior(train, test), 0
    assert right.dtype == bool and len(right) == len(test)
    for question, label, guessed in zip(test["question"], test["label"], right, strict=True):
        most = max(counts[question].values(), default=0)
        best = {name for name, n in counts[question].items() if n == most}
        if len(best) == 1:
            sure += 1
            assert guessed == (label in best)
    assert sure > 0.95 * len(test)


def test_blind_prior_on_a_table_by_hand():
    train = pd.DataFrame({"question": ["a", "a", "a", "b"], "label": ["yes", "no", "yes", "no"]})
    test = pd.DataFrame({"question": ["a", "a", "b", "never asked"], "label": ["yes", "no", "no", "yes"]})
    assert blind_prior(train, test).tolist() == [True, False, True, False]


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='dev' must be 'train' or 'test'"):
        read_easyvqa("dev")
