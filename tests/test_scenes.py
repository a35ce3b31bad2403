"""OpenMoji scenes: what a picture shows is what its answers say, and no set of things is in both splits."""

import numpy as np
import pytest
import tiny
import torch

from lib.config import BUILD
from lib.datasets import load_scenes
from lib.datasets.openmoji import TONES
from lib.datasets.scenes import KINDS, NAMES, OBJECTS, PICTURES, PLACES, TONED, asked_of, split_of
from lib.store import Store


@pytest.fixture(scope="module", params=PICTURES)
def split(request):
    return request.param, load_scenes(Store(BUILD / "store"), request.param)


def test_every_picture_has_two_to_four_things_of_the_split(split):
    name, scenes = split
    assert scenes.images.shape == (PICTURES[name], 3, 64, 64) and scenes.table["image"].nunique() == PICTURES[name]
    shown = (scenes.things >= 0).sum(1)
    assert shown.unique().tolist() == [2, 3, 4]
    for row in scenes.things[:300].tolist():
        assert split_of([NAMES[thing] for thing in row if thing >= 0]) == name
    toned = torch.tensor([name in TONED for name in NAMES])
    assert ((scenes.tones >= 0) == ((scenes.things >= 0) & toned[scenes.things])).all()
    assert scenes.tones.unique().tolist() == [-1, *range(len(TONES))]


def test_there_is_ink_where_something_lies_and_nowhere_else(split):
    _, scenes = split
    quarters = scenes.images[:500].unflatten(2, (2, 32)).unflatten(4, (2, 32))
    ink = (quarters < 255).any(1).any(2).any(3).flatten(1)
    assert (ink == (scenes.things[:500] >= 0)).all()


def test_answers_follow_from_what_lies_where(split):
    """Read back by rules of their own, from the question alone and the table of things."""
    _, scenes = split
    assert set(scenes.table["kind"]) == set(KINDS)
    for row in scenes.table.iloc[:4000].itertuples():
        things, tones = scenes.things[row.image].tolist(), scenes.tones[row.image].tolist()
        words = row.question.removesuffix("?").split()
        match row.kind:
            case "list":
                named = row.answer.replace(" and ", ", ").split(", ")
                assert [text.split()[1] for text in named] == [NAMES[thing] for thing in things if thing >= 0]
                assert all((text[:3] == "an ") == (text.split()[1][0] in "aeiou") for text in named)
            case "name":
                thing = things[PLACES.index(" ".join(words[-2:]))]
                assert row.answer.split()[-1] == (NAMES[thing] if thing >= 0 else "nothing")
            case "position":
                thing = NAMES.index(words[-1])
                place = PLACES[things.index(thing)] if thing in things else None
                assert row.answer == (f"the {words[-1]} is at the {place}" if place else f"there is no {words[-1]}")
            case "tone":
                tone = TONES[tones[things.index(NAMES.index(words[-1]))]]
                assert row.answer == f"the {words[-1]} has {tone.replace('-', ' ')} skin"


def test_a_question_is_asked_once_a_picture_and_half_the_second_places_are_missing(split):
    _, scenes = split
    assert not scenes.table.duplicated(["image", "question"]).any()
    missing = scenes.table.loc[scenes.table["kind"] == "position", "answer"].str.startswith("there is no")
    assert 0.2 < missing.mean() < 0.4


def test_no_question_alone_tells_much():
    """The usual answer to each question of the train split, asked of the test split."""
    train, test = (load_scenes(Store(BUILD / "store"), name).table for name in PICTURES)
    usual = train.groupby("question")["answer"].agg(lambda answers: answers.value_counts().index[0])
    right = test["question"].map(usual) == test["answer"]
    assert right.groupby(test["kind"]).mean().max() < 0.4


def test_the_names_are_distinct_and_the_splits_disjoint():
    assert len(set(NAMES)) == len(OBJECTS) + len(TONED) == len({*OBJECTS.values(), *TONED.values()})
    shown = [
        {tuple(sorted(t for t in row if t >= 0)) for row in load_scenes(Store(BUILD / "store"), s).things.tolist()}
        for s in PICTURES
    ]
    assert shown[0] and shown[1] and not shown[0] & shown[1]


def test_the_smallest_scene_is_asked_about():
    asked = asked_of([-1, NAMES.index("ear"), NAMES.index("dog"), -1], [-1, 2, -1, -1], np.random.default_rng(0))
    assert asked[0] == ("what is in the picture?", "an ear and a dog", "list")
    assert ("what skin tone has the ear?", "the ear has medium light skin", "tone") in asked


def test_answers_survive_the_tokenizer_and_an_unknown_split_is_refused(split):
    from lib.models.mdlm import Mdlm

    _, scenes = split
    model = Mdlm.load(str(BUILD.parent / "data" / "checkpoints" / "mdlm-scenes"))
    answers = scenes.table["answer"].iloc[:2000].tolist()
    assert model.texts(model.responses(answers)) == answers
    with pytest.raises(ValueError, match="split='val' must be one of train, test"):
        load_scenes(Store(BUILD / "store"), "val")


def test_the_same_scenes_are_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setitem(PICTURES, "test", 40)
    first, again = (load_scenes(Store(tmp_path / name), "test") for name in ("a", "b"))
    assert first.images.equal(again.images) and first.table.equals(again.table)
    assert first.images.equal(tiny.scenes("test").images[:40])
