"""CLIP: saved and loaded, its pre-processing, its loss and retrieval."""

import math

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from lib.models.clip import Clip, contrastive_loss, preprocess, retrieval
from lib.runtime.seeds import generator


@pytest.fixture(scope="module")
def clip():
    return tiny.clip()


@pytest.fixture(scope="module")
def picture():
    """A face, uint8 `[3, 64, 64]`."""
    return tiny.few_faces().images[0]


@torch.no_grad()
def test_saved_as_float16_and_loaded_as_float32(clip, tmp_path):
    clip.save(str(tmp_path))
    assert not list(tmp_path.glob("*.bin"))
    loaded = Clip.load(str(tmp_path))
    for name, value in clip.model.state_dict().items():
        kept = loaded.model.state_dict()[name]
        assert kept.dtype == value.dtype and torch.equal(kept, value.half().to(value.dtype)), name
    images = torch.rand(3, 3, 64, 64, generator=generator(0))
    for call, given in (("image_embeddings", images), ("text_embeddings", tiny.TEXTS)):
        torch.testing.assert_close(getattr(loaded, call)(given), getattr(clip, call)(given), rtol=0, atol=3e-3)
    assert loaded.processor.size == clip.processor.size and not loaded.model.training


@torch.no_grad()
def test_embeddings_are_unit_vectors_of_their_own_input(clip):
    """Whatever else is in the batch: a text's padding has no influence."""
    images = torch.rand(4, 3, 64, 64, generator=generator(1))
    texts = ["a", "what color is the circle in the image that is there?", "no", "give the person pale skin"]
    for call, batch in ((clip.image_embeddings, images), (clip.text_embeddings, texts)):
        made = call(batch)
        assert made.shape == (4, 16)
        torch.testing.assert_close(made.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(torch.cat([call(batch[k : k + 1]) for k in range(4)]), made, rtol=0, atol=1e-5)
        assert (made @ made.T - torch.eye(4)).max() < 0.9999


def processors():
    half = [0.5, 0.5, 0.5]
    size = {"height": 64, "width": 64}
    own = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False, image_mean=half, image_std=half)
    return {"own": own, "published": CLIPImageProcessorPil()}


def pil(picture: torch.Tensor, side: int) -> Image.Image:
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    return image if side == 64 else image.resize((side, side), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "side", "tolerance"), [("own", 64, 1e-6), ("own", 96, 0.02), ("own", 40, 0.08), ("published", 224, 1e-5)]
)
def test_preprocess_is_what_the_processor_does(picture, name, side, tolerance):
    """Exactly at its own size; at another but for PIL's rounding and clipping to 8 bits after each direction."""
    processor, image = processors()[name], pil(picture, side)
    expected = torch.tensor(np.array(processor(images=image)["pixel_values"][0]))
    given = torch.tensor(np.array(image)).permute(2, 0, 1)[None] / 255
    made = preprocess(given, processor)[0]
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= tolerance
    assert (made - expected).abs().mean() <= tolerance / 10


def loops(logits: list[list[float]]) -> float:
    """Cross-entropy of each row against its own place, in plain Python."""
    rows = enumerate(logits)
    return sum(math.log(sum(math.exp(value) for value in row)) - row[k] for k, row in rows) / len(logits)


@torch.no_grad()
@pytest.mark.parametrize(
    "texts",
    [["one", "two", "a circle", "no"], ["same", "two", "same", "no"], ["same"] * 4],
    ids=["distinct", "two", "all"],
)
def test_contrastive_loss_is_cross_entropy_both_ways(clip, texts):
    pictures = clip.image_embeddings(torch.rand(4, 3, 64, 64, generator=generator(2)))
    logits = clip.model.logit_scale.double().exp() * pictures.double() @ clip.text_embeddings(texts).double().T
    expected = (loops(logits.tolist()) + loops(logits.T.tolist())) / 2
    assert contrastive_loss(clip, pictures, texts).item() == pytest.approx(expected, abs=1e-5)


def test_contrastive_loss_learns_every_part():
    made = tiny.clip(3)
    contrastive_loss(made, made.image_embeddings(torch.rand(3, 3, 64, 64)), ["a", "b c", "red"]).backward()
    parameters = dict(made.model.named_parameters())
    for name in ("logit_scale", "visual_projection.weight", "text_projection.weight"):
        assert parameters[name].grad.abs().sum() > 0, name
    assert parameters["text_model.embeddings.token_embedding.weight"].grad.abs().sum() > 0


def test_retrieval_on_known_cases():
    eye = torch.eye(4)
    assert retrieval(eye, eye, 1).tolist() == [1, 1, 1, 1]
    assert retrieval(eye, eye.roll(1, 0), 1).tolist() == [0, 0, 0, 0]
    queries = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0]])
    assert [retrieval(queries, eye, k).tolist() for k in (1, 2, 3)] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert retrieval(queries, eye, 9).tolist() == [1, 1, 1, 1]
