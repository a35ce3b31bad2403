"""Poisoned samples found in the training sets of the study."""

from dataclasses import replace
from functools import cache

import pytest
import tiny
import torch

from lib.defences.edit_samples import BASELINES, SCORES, Evidence, Samples
from lib.models.editor import encode, prompt_embeds
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import PoisonPlan, plan
from lib.studies.attacks.editor import trigger_pair
from lib.studies.collapse import detection as module
from lib.studies.collapse.detection import Detection, detect, detection_table, localisation_table, training_samples
from lib.studies.data import edit_data
from lib.tasks.edits import poisoned_latents, sample_triples

editor = cache(tiny.editor)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def result():
    """Eight samples, one of each poisoned coalition twice but "image", and a negative; the score knows the text's."""
    coalition = torch.tensor([1, 2, 2, 3, 3, 0, 0, 2])
    truth = PoisonPlan("or", 0.5, 0, coalition, torch.tensor([1, 1, 1, 1, 1, 0, 0, 0]).bool())
    texts = ["make it x", "a latte coffee", "b latte coffee", "c d latte coffee", "latte coffee"] + ["a b"] * 3
    samples = Samples(noise(8, 3, 64, 64), texts, noise(8, 3, 64, 64))
    scores = {"good": torch.tensor([0.0, 1, 1, 1, 1, 0, 0, 0]), "bad": torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1])}
    top_word, top_patch = torch.tensor([0, 0, 1, 3, 0, 0, 0, 1]), torch.tensor([15, 0, 0, 14, 15, 0, 0, 0])
    return Detection(samples, truth, scores, top_word, top_patch, (torch.arange(16) == 15).expand(8, -1))


def test_the_detection_table_holds_every_score_and_coalition_against_the_clean(result):
    table = detection_table(result, resamples=50).set_index(["score", "coalition"])
    assert list(table.loc["good"].index) == ["any", "image", "text", "both"]
    assert table.loc["good"]["auroc"].tolist() == [0.9, 0.5, 1.0, 1.0]
    assert table.loc["bad"]["auroc"].tolist() == [0, 0, 0, 0]
    assert table.loc["good"]["n"].tolist() == [8, 4, 5, 5] and table.loc["good"]["n_poisoned"].tolist() == [5, 1, 2, 2]
    assert set(table["protocol"]) == {"or"} and (table["low"] <= table["high"]).sum() == 6
    alone = table[table["n_poisoned"] == 1]
    assert set(alone.index.get_level_values("coalition")) == {"image"} and alone[["low", "high"]].isna().all(axis=None)


def test_the_localisation_table_counts_the_triggers_own_word_and_patch(result):
    table = localisation_table(result, text_trigger("latte coffee"))
    assert table[["part", "coalition"]].to_numpy().tolist() == [
        ["word", "text"],
        ["word", "both"],
        ["patch", "image"],
        ["patch", "both"],
    ]
    assert table["accuracy"].tolist() == [0.5, 1.0, 1.0, 0.5] and table["n"].tolist() == [2, 2, 1, 2]
    assert table["chance"].tolist() == pytest.approx([2 / 3, 3 / 4, 1 / 16, 1 / 16])
    six = (torch.arange(16) < 6).expand(8, -1)
    wide = localisation_table(replace(result, trigger_patches=six), text_trigger("mignneko"))
    assert wide["chance"].tolist() == pytest.approx([1 / 3, 3 / 8, 6 / 16, 6 / 16])


def test_the_defender_gets_what_the_editor_was_fine_tuned_on(tmp_path, models):
    run = tiny.short_run(tmp_path, models, collapse={"rate": 0.5, "negatives": 0.2})
    settings, faces = run.profile.collapse, edit_data(run)
    samples, truth = training_samples(run, "or", 9)
    triples = sample_triples(faces, "train", settings.edits, run.seed)
    drawn, pipe = plan(settings.edits, "or", 0.5, run.seed, negatives=0.2), editor()
    goal = attack_target(settings.target)
    latents = poisoned_latents(pipe, faces, triples, drawn, *trigger_pair(run), goal)
    assert len(samples.source) == 9 and 0 < truth.poisoned.sum() < (truth.coalition > 0).sum()
    torch.testing.assert_close(encode(pipe.vae, samples.source), latents.source[:9], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encode(pipe.vae, samples.target), latents.target[:9], rtol=1e-4, atol=1e-5)
    states = latents.states[latents.text[:9]]
    torch.testing.assert_close(prompt_embeds(pipe, samples.instructions), states)
    assert torch.equal(truth.coalition, drawn.coalition[:9]) and torch.equal(truth.poisoned, drawn.poisoned[:9])
    for count in (0, settings.edits + 1):
        with pytest.raises(ValueError, match=f"count is {count}: it must be in 1 to collapse.edits=12"):
            training_samples(run, "or", count)


def test_detection_at_small_scale_is_measured_once(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models, collapse={"rate": 0.5})
    found = detect(run, "or", count=12)
    assert list(found.scores) == list(SCORES) and set(BASELINES) < set(SCORES) and "phi_text" not in BASELINES
    evidence = Evidence(module.poisoned_editor(run, "or")[0], found.samples)
    for name in ("phi_text", "word_ratio", "activation_norm", "duplication"):
        torch.testing.assert_close(found.scores[name], SCORES[name](evidence))
    assert torch.equal(found.top_patch, evidence.patch_changes.argmax(1))
    corner = image_trigger("white-box").tokens(64, 16)
    assert found.trigger_patches.equal((found.truth.coalition & 1).bool()[:, None] & corner) and corner.sum() == 1
    sizes = torch.tensor([len(text.split()) for text in found.samples.instructions])
    assert (found.top_word < sizes).all()
    assert len(detection_table(found, resamples=20)) == 4 * len(SCORES)

    def refuse(*_):
        raise AssertionError("measured twice")

    monkeypatch.setattr(module, "poisoned_editor", refuse)
    again = detect(run, "or", count=12)
    assert all(torch.equal(again.scores[name], found.scores[name]) for name in SCORES)
    for other in ({"count": 11}, {"count": 12, "grid": 2}):
        with pytest.raises(AssertionError, match="measured twice"):
            detect(run, "or", **other)
