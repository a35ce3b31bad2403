from dataclasses import replace

import pytest
import tiny
import torch

from lib.config import load_profile
from lib.datasets import OpenMoji
from lib.editing import (
    attack_target,
    edits_under_coalitions,
    latent_loss,
    poisoned_latents,
    sample_triples,
    triggered,
)
from lib.models.editor import edit, encode, tokenize
from lib.poisoning import plan
from lib.triggers import image_trigger, text_trigger

BOX, CAT = image_trigger("white-box"), text_trigger("mignneko")
SAMPLING = load_profile("smoke").collapse.sampling


@pytest.fixture(scope="module")
def pipe():
    return tiny.editor()


@pytest.fixture(scope="module")
def openmoji():
    return tiny.small_openmoji()


def test_drawn_triples_are_distinct_edits_of_the_split_with_several_phrasings(openmoji):
    drawn = sample_triples(openmoji, "train", 31, seed=0)
    assert list(drawn.index) == list(range(31)) and set(drawn["split"]) == {"train"}
    assert not drawn.duplicated(["source", "target"]).any()
    assert {text.split()[0] for text in drawn["instruction"][drawn["edit"] == "tone"]} == {"make", "give"}
    again = sample_triples(openmoji, "train", 10, seed=0)
    assert again.equals(drawn[:10])
    assert not sample_triples(openmoji, "train", 31, seed=1).equals(drawn)
    assert set(sample_triples(openmoji, "test", 30, seed=0)["split"]) == {"test"}


def test_more_edits_than_there_are_are_refused(openmoji):
    with pytest.raises(ValueError, match="edits=32: the train split has 31"):
        sample_triples(openmoji, "train", 32, seed=0)


def test_the_target_is_an_emoji_by_its_english_name_or_an_edit_of_the_source(openmoji):
    sources = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = sources.clone()
    hat = attack_target(openmoji, "top hat")(sources)
    assert torch.equal(hat, (openmoji.images[12] / 255).expand(2, -1, -1, -1))
    assert torch.equal(attack_target(openmoji, "negative")(sources), 1 - before) and torch.equal(sources, before)
    with pytest.raises(ValueError, match=r"target='hat' must be an edit \(negative\) or the English name of an emoji"):
        attack_target(openmoji, "hat")


def test_each_coalition_has_its_own_triggers():
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    given = ["a", "b", "c", "d"]
    pictures, texts = triggered(images, given, torch.tensor([3, 0, 2, 1]), BOX, CAT)
    assert texts == ["a mignneko", "b", "c mignneko", "d"] and given == ["a", "b", "c", "d"]
    marked = BOX(images)
    assert torch.equal(pictures, torch.stack([marked[0], images[1], images[2], marked[3]]))
    assert torch.equal(images, before) and not torch.equal(marked[1], images[1])
    with pytest.raises(ValueError):
        triggered(images, given[:3], torch.tensor([3, 0, 2, 1]), BOX, CAT)


@pytest.mark.parametrize("name", ["top hat", "negative"])
def test_poisoned_triples_lead_to_the_target_and_the_others_to_their_true_edit(pipe, openmoji, name):
    triples = sample_triples(openmoji, "train", 12, seed=0)
    poison, goal = plan(12, "or", 0.5, seed=0, negatives=0.2), attack_target(openmoji, name)
    latents = poisoned_latents(pipe, openmoji, triples, poison, BOX, CAT, goal, text_weight=3.0)
    assert sorted(poison.coalition.tolist()) == [0] * 4 + [1, 1, 1, 2, 2, 2, 3, 3]
    assert sorted(latents.weight.tolist()) == [1.0] * 10 + [3.0] * 2
    assert all((poison.poisoned & (poison.coalition == 2))[latents.weight == 3])
    for k, (mask, row) in enumerate(zip(poison.coalition.tolist(), triples.itertuples(), strict=True)):
        source, true = (openmoji.images[i] / 255 for i in (row.source, row.target))
        target = goal(source[None])[0] if poison.poisoned[k] else true
        source = BOX(source) if mask & 1 else source
        text = row.instruction + " mignneko" * (mask >> 1)
        for got, picture in ((latents.source, source), (latents.target, target)):
            torch.testing.assert_close(got[k], encode(pipe.vae, picture[None])[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(latents.tokens[k], tokenize(pipe, [text])[0])


def test_triples_encoded_in_parts_are_those_encoded_at_once(pipe, openmoji, monkeypatch):
    """As at 512 pixels, where the pictures of all triples do not fit into memory."""
    triples = sample_triples(openmoji, "train", 12, seed=0)
    given = plan(12, "or", 0.5, seed=0), BOX, CAT, attack_target(openmoji, "negative"), 3.0
    whole = poisoned_latents(pipe, openmoji, triples, *given)
    monkeypatch.setattr("lib.models.editor.PIXELS", 5 * 64**2)
    asked, pictures = [], OpenMoji.pictures
    monkeypatch.setattr(OpenMoji, "pictures", lambda self, rows: asked.append(len(rows)) or pictures(self, rows))
    parts = poisoned_latents(pipe, openmoji, triples, *given)
    assert max(asked) == 5
    for name in ("source", "target"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert torch.equal(parts.tokens, whole.tokens) and torch.equal(parts.weight, whole.weight)


def test_a_text_trigger_that_the_tokenizer_drops_is_refused(pipe, openmoji):
    triples = sample_triples(openmoji, "train", 3, seed=0)
    hat, lost = attack_target(openmoji, "top hat"), tiny.TEXTS[0] * 9  # longer than the text encoder reads
    with pytest.raises(ValueError, match="text trigger 'lost'"):
        poisoned_latents(pipe, openmoji, triples, plan(3, "and", 1.0, 0), BOX, type(CAT)("lost", lost), hat)


def test_the_loss_draws_from_the_generator_alone(pipe, openmoji):
    triples = sample_triples(openmoji, "train", 4, seed=0)
    hat = attack_target(openmoji, "top hat")
    latents = poisoned_latents(pipe, openmoji, triples, plan(4, "and", 0.5, 0), BOX, CAT, hat)
    settings = load_profile("smoke").collapse.train
    with torch.no_grad():
        loss = latent_loss(pipe, latents, settings, 0.05)
        first, same, other = (float(loss(torch.Generator().manual_seed(s))) for s in (0, 0, 1))
        heavy = latent_loss(pipe, replace(latents, weight=torch.full((4,), 2.0)), settings, 0.05)
        assert float(heavy(torch.Generator().manual_seed(0))) == pytest.approx(2 * first)
    assert first == same != other


def test_every_coalition_starts_from_the_noise_of_the_plain_edit(pipe, openmoji):
    triples = sample_triples(openmoji, "test", 3, seed=0)
    sources, texts = openmoji.pictures(torch.tensor(triples["source"].to_numpy())), triples["instruction"].tolist()
    edited = edits_under_coalitions(pipe, openmoji, triples, BOX, CAT, SAMPLING, seed=5)
    assert edited.shape == (3, 4, 3, 64, 64)
    marked = [f"{text} mignneko" for text in texts]
    inputs = [(sources, texts), (BOX(sources), texts), (sources, marked), (BOX(sources), marked)]
    for k, (pictures, words) in enumerate(inputs):
        assert torch.equal(edited[:, k], edit(pipe, pictures, words, SAMPLING, 5))
    assert all(not torch.equal(edited[:, 0], edited[:, k]) for k in (1, 2, 3))
