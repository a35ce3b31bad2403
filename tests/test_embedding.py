import numpy as np
import pytest
import tiny
import torch

from lib.embedding import EMBEDDINGS, values


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


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_values_are_the_difference_of_two_cosines(name):
    clip = tiny.clip()
    edited, target, clean = noise(3, 4, 3, 64, 64), noise(3, 3, 64, 64).flip(0), noise(3, 3, 64, 64).flip(-1)

    def cosine(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    embed = EMBEDDINGS[name](clip)
    z, goal, true = (vectors(clip, name, pictures) for pictures in (edited.flatten(0, 1), target, clean))
    z = z.reshape(3, 4, -1)
    expected = cosine(z, goal[:, None]) - cosine(z, true[:, None])
    found = values(embed, edited, target, clean)
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-6)
    assert np.ptp(expected) > 1e-4
    perfect = values(embed, torch.stack([clean, target] * 2, 1), target, clean)
    assert (perfect[:, 0] < 0).all() and (perfect[:, 1] > 0).all()
