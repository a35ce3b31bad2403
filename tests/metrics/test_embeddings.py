import numpy as np
import pytest
import tiny_published
import torch
from transformers import BitImageProcessorPil, Dinov2Model

from lib.metrics.embeddings import embeddings, load_embedding, values
from lib.models.clip import Clip


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def vectors(clip, name, pictures):
    """The embeddings by another way: CLIP's own forward pass, and numpy."""
    if name == "pixels":
        return pictures.double().numpy().reshape(len(pictures), -1) - 0.5
    with torch.no_grad():
        tower = clip.model.vision_model(pixel_values=pictures * 2 - 1).last_hidden_state[:, 0]
        tower = clip.model.vision_model.post_layernorm(tower)
        return (tower if name == "tower" else clip.model.visual_projection(tower)).double().numpy()


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return tiny_published.dino(tmp_path_factory.mktemp("dino"))


def test_dino_takes_what_its_own_processor_makes_of_a_picture(dino):
    pictures = (noise(2, 3, 64, 64) * 255).round() / 255
    model, processor = Dinov2Model.from_pretrained(dino), BitImageProcessorPil.from_pretrained(dino)
    pixels = processor(list(pictures.mul(255).byte()), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    found = load_embedding("dino", clip="none", dino=dino)(pictures)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.2


def test_without_dino_there_are_the_other_embeddings(models):
    assert embeddings() == ["clip", "tower", "pixels"]
    assert embeddings("x") == ["clip", "tower", "pixels", "dino"]
    for name in ("dino", "vgg"):
        with pytest.raises(ValueError, match=f"embedding='{name}' must be one of clip, tower, pixels$"):
            load_embedding(name, clip=models["clip"])


@pytest.mark.parametrize("name", ["clip", "tower", "pixels"])
def test_values_are_the_difference_of_two_cosines(name, models):
    clip = Clip.load(models["clip"])
    edited, target, clean = noise(3, 4, 3, 64, 64), noise(3, 3, 64, 64).flip(0), noise(3, 3, 64, 64).flip(-1)

    def cosine(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    embed = load_embedding(name, clip=models["clip"])
    z, goal, true = (vectors(clip, name, pictures) for pictures in (edited.flatten(0, 1), target, clean))
    z = z.reshape(3, 4, -1)
    expected = cosine(z, goal[:, None]) - cosine(z, true[:, None])
    found = values(embed, edited, target, clean)
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-6)
    assert np.ptp(expected) > 1e-4
    perfect = values(embed, torch.stack([clean, target] * 2, 1), target, clean)
    assert (perfect[:, 0] < 0).all() and (perfect[:, 1] > 0).all()
