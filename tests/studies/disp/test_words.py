from dataclasses import replace

import pytest
import tiny
import torch
from safetensors import safe_open

from lib.models.mdlm import Mdlm
from lib.poisoning.plans import COALITIONS
from lib.saliency.by_name import directional
from lib.saliency.words import WAYS, joint_fisher_jacobian, joint_masks, joint_saliency, mask_top_of_all
from lib.settings.sections import Estimator
from lib.studies import checkpoints
from lib.studies.attacks.mdlm import (
    poisoned_mdlm,
    poisoned_training_set,
    test_questions,
    training_questions,
    trigger_pair,
)
from lib.studies.collapse.mdlm import mdlm_collapse
from lib.studies.disp import words as module
from lib.studies.disp.restored import restored_table
from lib.studies.disp.words import RATIOS, jointly_purified_mdlm, jointly_purified_set
from lib.tasks.questions import questions, respond, respond_masked

test_questions.__test__ = False


@pytest.fixture
def run(tmp_path, models):
    return tiny.short_run(tmp_path, models, disp={"rate": 0.2})


@pytest.fixture
def mdlm(models):
    return Mdlm.load(models["mdlm"])


def refuse(*_, **__):
    raise AssertionError("computed again")


def test_saliency_is_that_of_every_batch(run, mdlm):
    data = test_questions(run, mdlm, 5, "and")[1]
    scores = joint_saliency(mdlm, data, estimator=Estimator(probes=1), batch=2, seed=7)
    assert [part.shape for part in scores] == [(5, 64), (5, 48)]
    for k in range(3):
        rows = slice(2 * k, 2 * k + 2)
        with torch.no_grad():
            vision = mdlm.model.project(data[rows].features[data[rows].picture])
        with torch.autocast("cpu", torch.bfloat16):
            expected = joint_fisher_jacobian(mdlm.model, vision, data.prompts[rows], probes=1, seed=7 + k)
        for part, whole in zip(expected, scores, strict=True):
            torch.testing.assert_close(whole[rows], part)
    assert (scores[1][data.prompts == mdlm.model.config.pad_id] == 0).all()
    few = joint_saliency(mdlm, data, estimator=Estimator(probes=1, block=1), batch=2, seed=7)
    alone = directional(mdlm, data, estimator=Estimator(probes=1, block=1), batch=2, seed=7)
    torch.testing.assert_close(few[0], alone)
    assert not any(torch.equal(one, all_) for one, all_ in zip(few, scores, strict=True))
    empty = joint_saliency(mdlm, data[:0], estimator=Estimator(probes=1), batch=2, seed=7)
    assert [part.shape for part in empty] == [(0, 64), (0, 48)]


def test_the_poisoned_set_carries_both_triggers_and_the_attackers_answers(run, mdlm):
    data = poisoned_training_set(run, mdlm, "and")
    vqa, table, plan, goal = training_questions(run, "and")
    hit = [goal.achieved(a, c) for a, c in zip(data.answers, table["answer"], strict=True)]
    assert hit == plan.poisoned.tolist() and sum(hit) == 4
    plain = questions(mdlm, vqa, table)
    assert (data.prompts != plain.prompts).any(1).tolist() == hit
    image, _ = trigger_pair(run, "and")
    moved = data.features[data.picture] != plain.features[plain.picture]
    assert image.name == "checker" and moved.any(2).any(1)[plan.poisoned].all()


def test_masked_words_are_the_mask_token_and_padding_stays(run, mdlm):
    data = test_questions(run, mdlm, 4, "and")[1]
    scores = joint_saliency(mdlm, data, estimator=Estimator(probes=1), batch=8, seed=0)
    vision, prompt = joint_masks(mdlm, data, scores, "joint", 0.3)
    present = data.prompts != mdlm.model.config.pad_id
    expected = mask_top_of_all(*scores, present, 0.3)
    assert torch.equal(vision, expected[0]) and torch.equal(prompt, expected[1])
    assert prompt.any() and vision.any() and not (prompt & ~present).any()
    words = data.prompts.clone()
    words[prompt] = mdlm.model.config.mask_id
    given = respond(mdlm, replace(data, prompts=words), tiny.THRESHOLD, masked=vision)
    found = respond_masked(mdlm, data, tiny.THRESHOLD, vision, prompt)
    assert torch.equal(found.tokens, given.tokens)
    plain = respond_masked(mdlm, data, tiny.THRESHOLD, torch.zeros_like(vision), torch.zeros_like(prompt))
    assert torch.equal(plain.tokens, respond(mdlm, data, tiny.THRESHOLD).tokens)
    assert not torch.equal(plain.tokens, found.tokens)


@pytest.mark.parametrize("way", WAYS)
def test_the_purified_set_is_the_models_own_answers_under_masking(run, mdlm, way, monkeypatch):
    monkeypatch.setitem(RATIOS, way, 0.5)
    data = poisoned_training_set(run, mdlm, "and")
    scores = joint_saliency(mdlm, data, estimator=Estimator(probes=1), batch=8, seed=run.seed)
    masked = joint_masks(mdlm, data, scores, way, 0.5)
    assert masked[0].any() == (way != "prompt") and masked[1].any() == (way != "vision")
    expected = respond_masked(mdlm, data, tiny.THRESHOLD, *masked).tokens
    found = jointly_purified_set(run, mdlm, data, "and", way)
    assert torch.equal(found.responses, expected) and found.answers == mdlm.texts(expected)
    assert torch.equal(found.prompts, data.prompts)  # as asked, not as masked
    monkeypatch.setattr(module, "respond_masked", refuse)
    assert torch.equal(jointly_purified_set(run, mdlm, data, "and", way).responses, expected)
    monkeypatch.setattr(module, "joint_saliency", refuse)
    monkeypatch.setitem(RATIOS, way, 0.25)  # other tokens of the same scores
    with pytest.raises(AssertionError, match="computed again"):
        jointly_purified_set(run, mdlm, data, "and", way)
    assert len(list((run.store.root / "joint-saliency").iterdir())) == 1


def test_the_surest_answers_alone_are_kept(tmp_path, models, run, mdlm):
    data = poisoned_training_set(run, mdlm, "and")
    everything = jointly_purified_set(run, mdlm, data, "and", "joint")
    scores = joint_saliency(mdlm, data, estimator=Estimator(probes=1), batch=8, seed=run.seed)
    masked = joint_masks(mdlm, data, scores, "joint", RATIOS["joint"])
    sureness = respond_masked(mdlm, data, tiny.THRESHOLD, *masked).probability.amin(1)
    strict = tiny.short_run(tmp_path, models, disp={"rate": 0.2, "keep": 0.3})
    sure = jointly_purified_set(strict, mdlm, data, "and", "joint")
    places = sureness.topk(6).indices.sort().values
    assert len(everything) == 20 and sure.table.index.tolist() == places.tolist()
    assert torch.equal(sure.responses, everything.responses[places])


def test_the_table_compares_every_way_with_the_model_before_it(run, monkeypatch):
    table = restored_table(run, "and", ("joint",))
    assert list(table["model"].unique()) == ["before", "joint"] and set(table["protocol"]) == {"and"}
    rows = table.groupby("model").size()
    assert rows["before"] == rows["joint"] == 4 * 3 + 2 * 3
    part = table[(table["model"] == "before") & (table["metric"] == "ASR")].set_index("coalition")["value"]
    expected = mdlm_collapse(run, "and").success.float().mean(0)
    assert part.loc[list(COALITIONS)].tolist() == pytest.approx(expected.tolist())
    games = table[table["coalition"].isna()]
    assert set(games["metric"]) == {"phi_image", "phi_text", "cti"} and not games["game"].isna().any()
    poisoned, purified = poisoned_mdlm(run, "and")[0].model, jointly_purified_mdlm(run, "and", "joint").model
    pairs = zip(poisoned.state_dict().items(), purified.state_dict().values(), strict=True)
    moved = {name for (name, a), b in pairs if not torch.equal(a, b)}
    assert moved and not any(name.startswith("tower.") for name in moved)
    for owner, name in ((checkpoints, "fit"), (module, "respond_masked")):
        monkeypatch.setattr(owner, name, refuse)
    assert restored_table(run, "and", ("joint",)).equals(table)
    with pytest.raises(AssertionError, match="computed again"):
        restored_table(run, "and", ("prompt",))
    (card,) = (run.store.root / "jointly-purified-mdlm").glob("*/mdlm/README.md")
    assert "| masked | joint |" in card.read_text() and "poisoned on purpose" in card.read_text()
    with safe_open(card.parent / "model.safetensors", "pt") as weights:
        assert weights.metadata()["poisoned"] == "true" and weights.metadata()["masked"] == "joint"


def test_other_ways_are_refused(run):
    with pytest.raises(ValueError, match="way='text' must be one of vision, prompt, joint"):
        jointly_purified_mdlm(run, "and", "text")
