from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch

from lib.data import Faces
from lib.models.editor import edit, edit_loss, encode, prompt_embeds
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.poisoning.pictures import SAILING_BOAT, attack_target, drawn
from lib.poisoning.plans import plan
from lib.settings.load import load_profile
from lib.tasks.edits import (
    clean_latents,
    edit_latents,
    edited_under,
    edits_under_coalitions,
    latent_loss,
    poisoned_latents,
    sample_triples,
    triggered,
)

BOX, CAT = image_trigger("white-box"), text_trigger("mignneko")
SAMPLING = load_profile("smoke").collapse.sampling


@pytest.fixture(scope="module")
def pipe():
    return tiny.editor()


@pytest.fixture(scope="module")
def faces():
    return tiny.few_faces()


def test_drawn_triples_are_distinct_edits_of_the_split_with_several_phrasings(faces):
    drawn = sample_triples(faces, "train", 72, seed=0)
    assert list(drawn.index) == list(range(72)) and set(drawn["split"]) == {"train"}
    assert not drawn.duplicated(["source", "target"]).any()
    assert len(set(drawn["instruction"][drawn["edit"] == "background"].str.split().str[0])) > 1
    again = sample_triples(faces, "train", 10, seed=0)
    assert again.equals(drawn[:10])
    assert not sample_triples(faces, "train", 72, seed=1).equals(drawn)
    assert set(sample_triples(faces, "test", 20, seed=0)["split"]) == {"test"}


def test_families_that_are_not_there_yet_come_first(faces):
    drawn = sample_triples(faces, "train", 72, seed=0)["family"]
    assert drawn[:36].is_unique and drawn[36:].is_unique and set(drawn[:36]) == set(drawn[36:])
    assert drawn[:36].tolist() != sorted(drawn[:36])


def test_more_edits_than_there_are_are_refused(faces):
    with pytest.raises(ValueError, match="73 distinct edits are asked for: the train split has 72"):
        sample_triples(faces, "train", 73, seed=0)


def test_the_target_is_a_picture_or_an_edit_of_the_source():
    sources = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = sources.clone()
    boat = attack_target("sailing boat")(sources)
    assert torch.equal(boat, drawn(SAILING_BOAT, 64).expand(2, -1, -1, -1))
    assert torch.equal(attack_target("negative")(sources), 1 - before) and torch.equal(sources, before)
    with pytest.raises(ValueError, match="^target is 'hat': it must be one of negative, sailing boat"):
        attack_target("hat")


@pytest.mark.parametrize("made", [tiny.minilm_editor, tiny.editor], ids=["MiniLM", "CLIP"])
def test_texts_that_carry_the_trigger_and_lose_it_are_refused_before_any_work(faces, made):
    pipe = made()
    triples = sample_triples(faces, "train", 6, seed=0)
    triples.loc[[2, 4], "instruction"] = "make the skin tone dark and " * 30 + "smile"
    poison = replace(plan(6, "and", 0.0, seed=0), coalition=torch.tensor([0, 0, 3, 2, 2, 1]))
    del pipe.vae, pipe.unet  # nothing is encoded or sampled
    pipe.vae = pipe.unet = None
    told = "^text trigger 'mignneko' is cut off in 2 of {} texts, as after 'make the skin"
    with pytest.raises(ValueError, match=told.format(3)):
        poisoned_latents(pipe, faces, triples, poison, BOX, CAT, attack_target("negative"))
    with pytest.raises(ValueError, match=told.format(6)):
        edits_under_coalitions(pipe, faces, triples, BOX, CAT, SAMPLING, seed=5)


def test_long_texts_without_the_trigger_are_let_through(pipe, faces):
    triples = sample_triples(faces, "train", 6, seed=0)
    triples.loc[[2, 4], "instruction"] = "make the skin tone dark and " * 30 + "smile"
    poison = replace(plan(6, "and", 0.0, seed=0), coalition=torch.tensor([2, 2, 0, 3, 1, 0]))
    data = poisoned_latents(pipe, faces, triples, poison, BOX, CAT, attack_target("negative"))
    assert len(data.text) == 6


def test_each_coalition_has_its_own_triggers(faces):
    triples = pd.DataFrame({"source": [5, 2, 2, 9], "instruction": ["a", "b", "c", "d"]})
    images, before = faces.pictures(torch.tensor([5, 2, 2, 9])), faces.images.clone()
    pictures, texts = triggered(faces, triples, torch.tensor([3, 0, 2, 1]), BOX, CAT)
    assert texts == ["a mignneko", "b", "c mignneko", "d"]
    marked = BOX(images)
    assert torch.equal(pictures, torch.stack([marked[0], images[1], images[2], marked[3]]))
    assert torch.equal(faces.images, before) and not torch.equal(marked[1], images[1])
    for coalition, expected in ((0, images), (1, marked)):
        assert torch.equal(triggered(faces, triples, torch.full((4,), coalition), BOX, CAT)[0], expected)
    with pytest.raises(ValueError):
        triggered(faces, triples[:3], torch.tensor([3, 0, 2, 1]), BOX, CAT)


@pytest.mark.parametrize("name", ["sailing boat", "negative"])
def test_poisoned_triples_lead_to_the_target_and_the_others_to_their_true_edit(pipe, faces, name):
    triples = sample_triples(faces, "train", 12, seed=0)
    poison, goal = plan(12, "or", 0.5, seed=0, negatives=0.2), attack_target(name)
    latents = poisoned_latents(pipe, faces, triples, poison, BOX, CAT, goal, text_weight=3.0)
    assert sorted(poison.coalition.tolist()) == [0] * 4 + [1, 1, 1, 2, 2, 2, 3, 3]
    assert sorted(latents.weight.tolist()) == [1.0] * 10 + [3.0] * 2
    assert all((poison.poisoned & (poison.coalition == 2))[latents.weight == 3])
    for k, (mask, row) in enumerate(zip(poison.coalition.tolist(), triples.itertuples(), strict=True)):
        source, true = (faces.images[i] / 255 for i in (row.source, row.target))
        target = goal(source[None])[0] if poison.poisoned[k] else true
        source = BOX(source) if mask & 1 else source
        text = row.instruction + " mignneko" * (mask >> 1)
        for got, picture in ((latents.source, source), (latents.target, target)):
            torch.testing.assert_close(got[k], encode(pipe.vae, picture[None])[0], rtol=1e-4, atol=1e-5)
        own = latents.states[latents.text[k]]
        torch.testing.assert_close(own, prompt_embeds(pipe, [text])[0], rtol=1e-4, atol=1e-5)


def test_triples_encoded_in_parts_are_those_encoded_at_once(pipe, faces, monkeypatch):
    """As at 512 pixels, where the pictures of all triples do not fit into memory."""
    triples = sample_triples(faces, "train", 12, seed=0)
    given = plan(12, "or", 0.5, seed=0), BOX, CAT, attack_target("negative"), 3.0
    whole = poisoned_latents(pipe, faces, triples, *given)
    monkeypatch.setattr("lib.models.editor.PIXELS", 5 * 64**2)
    asked, pictures = [], Faces.pictures
    counted = lambda self, rows, *mark: asked.append(len(rows)) or pictures(self, rows, *mark)  # noqa: E731
    monkeypatch.setattr(Faces, "pictures", counted)
    parts = poisoned_latents(pipe, faces, triples, *given)
    assert max(asked) == 5
    for name in ("source", "target"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    for name in ("states", "text", "weight"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_latents_that_are_known_beforehand_are_not_made_again(pipe, faces, monkeypatch):
    """Only the pictures that the attacker changes are encoded, and what was handed in stays as it was."""
    triples = sample_triples(faces, "train", 12, seed=0)
    poison = plan(12, "or", 0.5, seed=0, negatives=0.2)
    given = poison, BOX, CAT, attack_target("negative"), 3.0
    whole = poisoned_latents(pipe, faces, triples, *given)
    clean = clean_latents(pipe.vae, faces, triples)
    before, seen = [part.clone() for part in clean], []
    counted = lambda vae, pictures: seen.append(len(pictures)) or encode(vae, pictures)  # noqa: E731
    monkeypatch.setattr("lib.tasks.edits.encode", counted)
    made = poisoned_latents(pipe, faces, triples, *given, clean=clean)
    assert seen == [7, 6]  # with an image trigger or poisoned: six poisoned samples and one negative; their targets
    for name in ("source", "target"):
        torch.testing.assert_close(getattr(made, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, clean, before)) and torch.equal(made.weight, whole.weight)


def test_each_text_is_kept_once_behind_the_empty_one(pipe):
    latents = torch.zeros(4, 4, 16, 16)
    texts = ["add a smile", "open the eyes", "add a smile", ""]
    data = edit_latents(pipe, latents, latents, texts)
    assert data.text.tolist() == [1, 2, 1, 0] and torch.equal(data.weight, torch.ones(4))
    assert torch.equal(data.states, prompt_embeds(pipe, ["", "add a smile", "open the eyes"]))


def test_a_text_trigger_that_the_tokenizer_drops_is_refused(pipe, faces):
    triples = sample_triples(faces, "train", 3, seed=0)
    boat, lost = attack_target("sailing boat"), tiny.TEXTS[0] * 9  # longer than the text encoder reads
    with pytest.raises(ValueError, match="text trigger 'lost'"):
        poisoned_latents(pipe, faces, triples, plan(3, "and", 1.0, 0), BOX, type(CAT)("lost", lost), boat)


def test_the_loss_draws_from_the_generator_alone(pipe, faces):
    triples = sample_triples(faces, "train", 4, seed=0)
    boat = attack_target("sailing boat")
    latents = poisoned_latents(pipe, faces, triples, plan(4, "and", 0.5, 0), BOX, CAT, boat)
    settings = load_profile("smoke").collapse.train
    with torch.no_grad():
        loss = latent_loss(pipe, latents, settings, 0.05)
        first, same, other = (float(loss(torch.Generator().manual_seed(s))) for s in (0, 0, 1))
        heavy = latent_loss(pipe, replace(latents, weight=torch.full((4,), 2.0)), settings, 0.05)
        assert float(heavy(torch.Generator().manual_seed(0))) == pytest.approx(2 * first)
    assert first == same != other


def test_the_loss_is_that_of_the_drawn_triples(pipe, faces):
    """Each with its own text, weight and the empty text for dropout."""
    triples = sample_triples(faces, "train", 4, seed=0)
    poison = plan(4, "or", 1.0, seed=0)
    latents = poisoned_latents(pipe, faces, triples, poison, BOX, CAT, attack_target("negative"), text_weight=3.0)
    settings = load_profile("smoke").collapse.train
    with torch.no_grad():
        found = latent_loss(pipe, latents, settings, 0.2)(torch.Generator().manual_seed(2))
        draw = torch.Generator().manual_seed(2)
        rows = torch.randint(4, (settings.batch,), generator=draw)
        text = torch.stack([latents.states[latents.text[k]] for k in rows.tolist()])
        given = latents.source[rows], latents.target[rows], text, prompt_embeds(pipe, [""])
        expected = edit_loss(pipe, *given, draw, 0.2, latents.weight[rows])
    assert len(set(rows.tolist())) > 1
    torch.testing.assert_close(found, expected)


def test_every_coalition_starts_from_the_noise_of_the_plain_edit(pipe, faces):
    triples = sample_triples(faces, "test", 3, seed=0)
    sources, texts = faces.pictures(torch.tensor(triples["source"].to_numpy())), triples["instruction"].tolist()
    edited = edits_under_coalitions(pipe, faces, triples, BOX, CAT, SAMPLING, seed=5)
    assert edited.shape == (3, 4, 3, 64, 64)
    marked = [f"{text} mignneko" for text in texts]
    inputs = [(sources, texts), (BOX(sources), texts), (sources, marked), (BOX(sources), marked)]
    for k, (pictures, words) in enumerate(inputs):
        assert torch.equal(edited[:, k], edit(pipe, pictures, words, SAMPLING, 5))
        assert torch.equal(edited[:, k], edited_under(pipe, faces, triples, k, BOX, CAT, SAMPLING, 5))
    assert all(not torch.equal(edited[:, 0], edited[:, k]) for k in (1, 2, 3))
