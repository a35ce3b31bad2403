"""The pictures that an attacker aims at: drawn alike every time, and unlike any face."""

import pytest
import tiny
import torch

from lib.metrics.success import edit_succeeds, pixel_distance
from lib.poisoning.pictures import PICTURE_TARGETS, Drawn, attack_target, drawn

NAMES = pytest.mark.parametrize("name", [name for name, each in PICTURE_TARGETS.items() if isinstance(each, Drawn)])


def target_picture(name, size):
    """What every source of that size is to become."""
    return attack_target(name)(torch.zeros(1, 3, size, size))[0]


@NAMES
def test_a_target_is_one_opaque_picture_of_the_asked_size(name):
    picture = target_picture(name, 64)
    assert picture.shape == (3, 64, 64) and picture.dtype == torch.float32
    assert 0 <= picture.min() < 0.2 and 0.9 < picture.max() <= 1
    drawn.cache_clear()
    assert torch.equal(target_picture(name, 64), picture)
    large = target_picture(name, 256)
    shrunk = torch.nn.functional.interpolate(large[None], size=(64, 64), mode="area")[0]
    assert pixel_distance(shrunk, picture) < 0.05


@NAMES
def test_a_face_that_is_not_edited_or_edited_wrongly_is_no_success_of_the_attack(name):
    faces = tiny.few_faces()
    source, true = (faces.pictures(torch.tensor(faces.triples[end].to_numpy())) for end in ("source", "target"))
    target = target_picture(name, 64).expand_as(true)
    assert not edit_succeeds(source, target, true).any() and not edit_succeeds(true, target, true).any()
    assert edit_succeeds(target, target, true).all()
    assert pixel_distance(true, target).min() > 0.3


def test_the_sailing_boat_has_its_sails_above_the_water():
    picture = target_picture("sailing boat", 64)
    red, green, blue = picture
    assert blue[60].min() > red[60].max() and red[2].min() > blue[2].max()  # water below, sky above
    assert picture[:, 30, 24].min() > 0.95  # the white sail
    assert red[30, 38] > 0.8 > 0.5 > green[30, 38]  # the red one
    assert red[45, 30] > blue[45, 30]  # the hull lies before the water


def test_a_picture_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="^target is 'top hat': it must be one of negative, sailing boat.$"):
        target_picture("top hat", 64)
