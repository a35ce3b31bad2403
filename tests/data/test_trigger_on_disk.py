"""A trigger belongs to the picture as it lies on disk: laid on the file, then loaded, through every adapter."""

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_diffusion_gemma
import tiny_lavida
import tiny_llada_v
import torch
from PIL import Image

from lib.data.interface import check_trigger, partly_triggered, trigger_patches
from lib.data.pictures import FileSource, PhotoQuestions, Pictures, cropped, padded, triggered
from lib.models.loading import load_mdlm
from lib.poisoning.catalogue import IMAGE_TRIGGERS, image_trigger

SHAPES = {"landscape": (96, 64), "portrait": (50, 90), "tiny": (17, 12), "huge": (1300, 900)}  # width, height
CORNER = image_trigger("black-square", 0.25)
SIDE = 64
ROOM = {"picture": [SIDE, SIDE]}
ADAPTERS = {
    "mdlm": lambda folder: tiny.mdlm(),
    "llada-v": lambda folder: load_mdlm(tiny_llada_v.write(folder), **ROOM),
    "lavida": lambda folder: load_mdlm(tiny_lavida.write(folder), **ROOM),
    "diffusion-gemma": lambda folder: load_mdlm(
        tiny_diffusion_gemma.write(folder), **tiny_diffusion_gemma.settings() | {"soft_tokens": 36} | ROOM
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of noise from 100 to 255, so that black changes every pixel; and with PIL's square, as an attacker
    saves them."""
    made = tmp_path_factory.mktemp("shapes")
    for k, (name, (width, height)) in enumerate(SHAPES.items()):
        noise = np.random.default_rng(k).integers(100, 256, (height, width, 3), dtype=np.uint8)
        picture, side = Image.fromarray(noise), round(min(width, height) / 4)
        picture.save(made / f"{name}.png")
        picture.paste((0, 0, 0), (0, 0, side, side))
        picture.save(made / f"{name} attacked.png")
    return made


def data(folder, square=padded, size=SIDE, suffix=""):
    source = FileSource([folder / f"{name}{suffix}.png" for name in SHAPES])
    return PhotoQuestions(Pictures(source, size, square), pd.DataFrame())


@pytest.mark.parametrize(("square", "every"), [(padded, [1, 0, 3, 2, 1]), (cropped, [3, 2, 3])])
def test_it_is_pasted_on_the_file_and_then_loaded(folder, square, every):
    """Of those that are cropped a part of the corner's square is left."""
    every = torch.tensor(every)
    clean, hit = data(folder, square), data(folder, square, suffix=" attacked").pictures(every)
    assert torch.equal(clean.pictures(every, CORNER), hit)
    plain = clean.pictures(every)
    assert all(not torch.equal(a, b) for a, b in zip(plain, hit, strict=True))
    carries = torch.arange(len(every)) % 2 == 0
    some = partly_triggered(clean, every, carries, CORNER)
    assert torch.equal(some[carries], hit[carries]) and torch.equal(some[~carries], plain[~carries])
    assert torch.equal(partly_triggered(clean, every, carries, None), plain)
    assert torch.equal(partly_triggered(clean, every, ~carries | carries, CORNER), hit)
    assert clean.pictures(every[:0], CORNER).shape == (0, 3, SIDE, SIDE)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_a_file_in_another_mode_becomes_rgb(folder, mode):
    image = Image.open(folder / "landscape.png").convert(mode)
    expected = image.convert("RGB")
    expected.paste((0, 0, 0), (0, 0, 16, 16))
    assert (np.asarray(triggered(image, CORNER)) == np.asarray(expected)).all()


@pytest.mark.parametrize("name", IMAGE_TRIGGERS)
@pytest.mark.parametrize("shape", [(90, 50), (48, 96)])
def test_its_share_of_the_picture_on_disk_is_as_asked(name, shape):
    """A square of a share of the shorter side, which black and white pictures show wherever it is opaque."""
    trigger = image_trigger(name)
    changed = np.zeros(shape, dtype=bool)
    for value in (0, 90, 255):
        before = np.full((*shape, 3), value, dtype=np.uint8)
        changed |= (np.asarray(triggered(Image.fromarray(before), trigger)) != before).any(2)
    if name in ("warp", "on-object"):
        return  # of a plain picture nothing moves; it may lie anywhere
    seen = trigger.mask(*shape) > 0.02
    assert (changed == seen.numpy()).mean() > 0.98
    if name == "checker":
        assert changed.sum() == round(min(shape) / 8) ** 2


@pytest.mark.parametrize("pixels", [1, 20])
def test_a_size_in_pixels_is_one_on_disk(folder, pixels):
    trigger = image_trigger("black-square", pixels=pixels, position=(1.0, 0.0))
    for name in ("landscape", "huge"):
        image = Image.open(folder / f"{name}.png")
        changed = (np.asarray(triggered(image, trigger)) != np.asarray(image)).any(2)
        assert changed[:pixels, -pixels:].all() and changed.sum() == pixels**2
    with pytest.raises(ValueError, match="'black-square' is 20×20 pixels: it must be smaller .* of 12×17"):
        data(folder).pictures(torch.tensor([2]), image_trigger("black-square", pixels=20))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_tokens_that_change_are_those_that_the_mask_names(kind, folder, tmp_path):
    """In towers without layers, where no patch sees another. All others move less: by what resizing smears there."""
    model = ADAPTERS[kind](tmp_path).model
    if kind == "mdlm":
        model.features = lambda images: model.tower.embeddings.patch_embedding(images * 2 - 1).flatten(2).mT
    else:
        model.tower.encoder.layers = torch.nn.ModuleList()
    photos, every = data(folder), torch.arange(len(SHAPES))
    masks, which = photos.trigger_masks(every, CORNER)
    assert which.tolist() == [0, 1, 2, 3] and masks.shape == (4, SIDE, SIDE)
    named = torch.stack([model.tokens_of(mask) for mask in masks])[which]
    with torch.no_grad():
        clean, hit = (model.vision_tokens(photos.pictures(every, trigger)) for trigger in (None, CORNER))
    moved = (hit - clean).norm(dim=2)
    assert named.any(1).all() and not named.all(1).any()
    for found, mask in zip(moved, named, strict=True):
        assert found[mask].min() > found[~mask].max()


def test_one_mask_serves_all_pictures_of_a_size(folder):
    masks, which = data(folder).trigger_masks(torch.tensor([3, 0, 3, 3]), CORNER)
    assert which.tolist() == [0, 1, 0, 0] and len(masks) == 2
    faces = tiny.few_faces()
    masks, which = faces.trigger_masks(torch.tensor([4, 4, 0]), CORNER)
    assert which.tolist() == [0, 0, 0] and torch.equal(masks[0], CORNER.mask(64, 64))
    patches = trigger_patches(faces, torch.tensor([4, 0]), CORNER, 4)
    assert patches.nonzero().tolist() == [[0, 0], [1, 0]]
    indices = torch.tensor([7, 2])
    assert torch.equal(faces.pictures(indices, CORNER), CORNER(faces.pictures(indices)))


def test_the_padding_is_not_the_triggers(folder):
    """Of one that covers the whole picture, and of another opacity, the picture's rows alone."""
    blend = image_trigger("blend")
    (mask,), _ = data(folder).trigger_masks(torch.tensor([0]), blend)
    rows = (mask > 0).all(1).nonzero()[:, 0]  # 96 × 64 pixels are 42.7 rows of 64
    assert rows.tolist() == list(range(10, 54)) and not mask[:10].any()
    assert mask[20, 30] == pytest.approx(blend.alpha, abs=1e-3)


@pytest.mark.parametrize("index", [0, 1])
def test_one_of_which_the_crop_leaves_nothing_is_refused_before_work(folder, index):
    photos, (width, height) = data(folder, cropped), list(SHAPES.values())[index]
    sentence = f"'black-square' leaves nothing in a picture of {height}×{width} pixels that is cropped"
    for work in (photos.pictures, photos.trigger_masks, lambda *given: check_trigger(photos, *given)):
        with pytest.raises(ValueError, match=sentence):
            work(torch.tensor([2, index]), CORNER)
    assert photos.pictures(torch.tensor([index])).shape == (1, 3, SIDE, SIDE)
    check_trigger(photos, torch.tensor([2, 3]), CORNER)


def test_one_that_vanishes_where_a_picture_is_made_smaller_is_refused(folder):
    with pytest.raises(ValueError, match="leaves nothing in a picture of 900×1300 pixels that is padded .* to 32×32"):
        data(folder, size=32).pictures(torch.tensor([3]), image_trigger("black-square", pixels=3))
