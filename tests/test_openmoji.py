"""OpenMoji edit triples: no leak between the splits, the right counts, edits that do what they say."""

import re

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from lib.datasets import openmoji as module
from lib.datasets.openmoji import EDITS, TONES
from lib.store import Store

PHRASES = dict.fromkeys(EDITS, 2) | {"tone": 3}
RGB = {"yellow": (255, 224, 96), "pink": (255, 176, 200), "cyan": (160, 232, 240)}
INK = {"red": (224, 32, 32), "green": (16, 128, 48), "blue": (32, 64, 224)}


@pytest.fixture(scope="module")
def data():
    return tiny.openmoji()


@pytest.fixture(scope="module")
def edits(data):
    """One row an edit: the first phrasing of each."""
    return data.triples.drop_duplicates(["source", "target", "edit"]).reset_index(drop=True)


def pictures(data, indices) -> torch.Tensor:
    return data.images[torch.tensor(np.asarray(indices))].short()


def sides(data) -> dict[int, set[str]]:
    """The splits in which each picture is seen, itself or as source or target of an edit."""
    found = {k: {split} for k, split in enumerate(data.emoji["split"])}
    for column in ("source", "target"):
        for picture, split in zip(data.triples[column], data.triples["split"], strict=True):
            found.setdefault(picture, set()).add(split)
    return found


def test_no_family_is_on_both_sides(data):
    assert data.emoji.groupby("family")["split"].nunique().max() == 1
    assert data.emoji.groupby("concept")["split"].nunique().max() == 1
    assert data.emoji.groupby("concept")["family"].nunique().max() == 1
    source, target = (data.triples[column].to_numpy() for column in ("source", "target"))
    assert (data.triples["family"].to_numpy() == data.emoji["family"].to_numpy()[source]).all()
    assert (data.triples["split"].to_numpy() == data.emoji["split"].to_numpy()[source]).all()
    inside = target < len(data.emoji)
    assert (data.emoji["family"].to_numpy()[target[inside]] == data.triples["family"].to_numpy()[inside]).all()


def test_no_picture_is_on_both_sides(data):
    """Neither by index nor by pixels: the flag of St. Martin is France's, and both are in train."""
    found = sides(data)
    assert set(found) == set(range(len(data.images)))
    assert all(len(splits) == 1 for splits in found.values())
    train = {data.images[k].numpy().tobytes() for k, splits in found.items() if splits == {"train"}}
    held_out = {k for k, splits in found.items() if splits == {"test"}}
    assert held_out
    assert not any(data.images[k].numpy().tobytes() in train for k in held_out)


def test_every_edit_changes_the_picture(edits, data):
    changed = pictures(data, edits["source"]) != pictures(data, edits["target"])
    assert changed.flatten(1).any(1).all()


def test_families_join_what_differs_in_tone_gender_hair_or_direction_only():
    names = (
        "woman running dark skin tone",
        "man running medium-light skin tone",
        "person running facing right",
        "man running facing right light skin tone",
    )
    assert {module._family(name) for name in names} == {module._family("person running")} == {"running"}
    assert module._family("woman red hair") == module._family("man bald light skin tone")
    assert module._family("mrs. claus") == module._family("santa claus")
    assert module._family("running shoe") != "running"


def test_about_the_asked_share_of_families_is_held_out(data):
    split = data.emoji.drop_duplicates("family")["split"]
    assert (split == "test").mean() == pytest.approx(0.1, abs=0.02)


def test_330_concepts_have_all_six_tones(data):
    variants = data.tone_variants()
    complete = variants[(variants >= 0).all(1)].unique(dim=0)
    assert complete.shape == (330, 6)
    for row in complete[::30].tolist():
        group = data.emoji.iloc[row]
        assert group["concept"].nunique() == 1 and group["tone"].tolist() == list(range(6))
        assert all(tone in name for tone, name in zip(TONES[1:], group["name"][1:], strict=True))
    assert "dark" not in data.emoji["name"][complete[0, 0].item()]


def test_counts_of_edits(data, edits):
    assert set(data.triples["edit"]) == set(EDITS) and len(data.emoji) == 3953
    plain = int((data.emoji["tone"] == 0).sum())
    codes = set(data.emoji["code"])
    facing = [code.removesuffix("-200D-27A1-FE0F") for code in codes if code.endswith("-200D-27A1-FE0F")]
    expected = {
        "tone": 330 * 6 * 5,
        "direction": 2 * sum(code in codes for code in facing),
        "hair": 3 * 6 * 4 * 3,
        "background": plain,
    }
    counts = edits["edit"].value_counts()
    assert {name: counts[name] for name in expected} == expected
    assert counts["gender"] > 2000
    assert all(0.9 * plain < counts[name] <= plain for name in ("outline", "grayscale", "mirror"))
    phrasings = data.triples.groupby(["source", "target", "edit"])["instruction"].agg(["nunique", "size"])
    for edit, number in PHRASES.items():
        assert (phrasings.xs(edit, level="edit") == number).all(axis=None), edit
    assert (data.triples["edit"] == "tone").sum() == 29_700
    assert edits.query("edit == 'tone'").groupby("split").size().sum() == 9_900


def test_pictures_are_uint8_and_become_floats(data):
    assert data.images.dtype == torch.uint8 and data.images.shape[1:] == (3, 64, 64)
    floats = data.pictures(torch.tensor([5, 0]))
    assert torch.equal((floats * 255).round().to(torch.uint8), data.images[[5, 0]])


def test_instruction_names_what_the_target_is(data):
    """Tone, gender, hair and direction: the instruction's word is in the target's name, and the rest is kept."""
    names, tones, concepts = (data.emoji[column].tolist() for column in ("name", "tone", "concept"))
    for row in data.triples.itertuples():
        if row.edit == "tone":
            tone = TONES[tones[row.target]]
            assert re.search(rf"(?<![\w-]){tone}(?![\w-])", row.instruction), row
            assert tones[row.source] != tones[row.target]
            assert concepts[row.source] == concepts[row.target]
        elif row.edit == "gender":
            person = row.value.removeprefix("a ")
            assert person in names[row.target].split() and row.value in row.instruction
            assert tones[row.source] == tones[row.target]
        elif row.edit == "hair":
            wanted = {"no": "bald"}.get(row.value, f"{row.value} hair")
            assert wanted in names[row.target] and wanted not in names[row.source]
            assert f"{row.value} hair" in row.instruction
        elif row.edit == "direction":
            right = "facing right" in names[row.target]
            assert row.value == ("right" if right else "left") and row.value in row.instruction
            assert right != ("facing right" in names[row.source])


def test_tone_edits_change_the_picture(data, edits):
    tone = edits[edits["edit"] == "tone"]
    pairs = zip(tone["source"], tone["target"], strict=True)
    assert all(not torch.equal(data.images[a], data.images[b]) for a, b in pairs)


def test_grayscale_is_the_luma_in_all_three_channels(data, edits):
    chosen = edits[edits["edit"] == "grayscale"]
    source, target = pictures(data, chosen["source"]), pictures(data, chosen["target"])
    assert (target == target[:, :1]).all()
    luma = (source.double() * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1)
    assert (target[:, 0] - luma).abs().max() <= 0.5001
    coloured = (source.amax(1) - source.amin(1)).flatten(1).amax(1) > 100
    assert coloured.sum() > 1500


def test_mirror_is_the_flip_left_to_right(data, edits):
    chosen = edits[edits["edit"] == "mirror"]
    source, target = pictures(data, chosen["source"]), pictures(data, chosen["target"])
    assert torch.equal(target, source.flip(-1))
    assert (target != source).flatten(1).any(1).float().mean() > 0.95


def test_background_has_the_asked_colour_in_the_corners_and_keeps_the_emoji(data, edits):
    chosen = edits[edits["edit"] == "background"]
    source, target = pictures(data, chosen["source"]), pictures(data, chosen["target"])
    wanted = torch.tensor([RGB[value] for value in chosen["value"]])
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert (source[:, :, y, x] == 255).all()
        assert torch.equal(target[:, :, y, x], wanted.short())
    black = (source == 0).all(1)
    assert (target.movedim(1, -1)[black] == 0).all()
    assert all(row.value in row.instruction for row in chosen.itertuples())
    assert chosen["value"].value_counts(normalize=True).min() > 0.25


def test_outline_takes_the_asked_colour_where_it_was_black(data, edits):
    """All emoji but the few drawn without a group `line`; the background stays."""
    chosen = edits[edits["edit"] == "outline"]
    source, target = pictures(data, chosen["source"]), pictures(data, chosen["target"])
    changed = (source != target).flatten(1).any(1)
    assert changed.float().mean() > 0.95
    assert (target[:, :, 0, 0] == 255).all()
    ink = torch.tensor([INK[value] for value in chosen["value"]])[:, :, None, None]
    black, inked = (source == 0).all(1), ((target - ink).abs() <= 2).all(1)
    share = (black & inked).flatten(1).sum(1) / black.flatten(1).sum(1).clamp(min=1)
    assert share[changed].median() > 0.95
    assert chosen["value"].value_counts(normalize=True).min() > 0.25


def test_tables_and_pictures_come_out_the_same_again(data, tmp_path):
    """What another process once kept in the store is what this one makes: no hash or order of the process."""
    again = module.load_openmoji(Store(tmp_path))
    pd.testing.assert_frame_equal(again.emoji, data.emoji)
    pd.testing.assert_frame_equal(again.triples, data.triples)
    assert torch.equal(again.images, data.images)