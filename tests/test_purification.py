import pandas as pd
import pytest
import tiny
import torch

from lib import purification
from lib.answering import Questions, respond
from lib.attacks import mdlm as attack
from lib.attacks.mdlm import poisoned_mdlm, test_questions, training_questions
from lib.models.mdlm import Mdlm
from lib.poisoning import target
from lib.purification import (
    METRICS,
    metric_name,
    performance,
    poisoned_training_set,
    purified_mdlm,
    purified_set,
    ratio_study,
    saliency,
    saliency_panels,
    set_quality,
    training_scores,
    trigger_rank,
)
from lib.saliency import fisher_jacobian, most_salient
from lib.triggers import image_trigger

test_questions.__test__ = False


@pytest.fixture
def mdlm(models):
    return Mdlm.load(models["mdlm"])


def answered(*answers):
    rows, empty = range(len(answers)), torch.zeros(len(answers), 0, dtype=torch.long)
    features, picture = torch.zeros(1, 64, 32), torch.zeros(len(answers), dtype=torch.long)
    return Questions(features, picture, empty, empty, list(answers), pd.DataFrame(index=rows))


def refuse(*_, **__):
    raise AssertionError("computed again")


def test_saliency_is_that_of_every_batch(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models)
    data = test_questions(run, mdlm, 5)[0]
    scores = saliency(mdlm, data, probes=1, seed=7, batch=2)
    assert scores.shape == (5, 64)
    for k in range(3):
        part = data[2 * k : 2 * k + 2]
        with torch.no_grad():
            vision = mdlm.model.project(part.features[part.picture])
        with torch.autocast("cpu", torch.bfloat16):
            expected = fisher_jacobian(mdlm.model, vision, part.prompts, probes=1, seed=7 + k)
        torch.testing.assert_close(scores[2 * k : 2 * k + 2], expected)
    assert saliency(mdlm, data[:0], probes=1, seed=7, batch=2).shape == (0, 64)


def test_the_purified_set_is_the_models_own_answers_under_masking(tmp_path, models, mdlm, monkeypatch):
    run = tiny.short_run(tmp_path, models, disp={"ratio": 0.5})
    data = poisoned_training_set(run, mdlm)
    masked = most_salient(saliency(mdlm, data, 1, run.seed, 8), 0.5)
    assert masked.sum(1).tolist() == [32] * 20
    expected = respond(mdlm, data, 0.1, masked=masked).tokens
    found = purified_set(run, mdlm, data)
    assert torch.equal(found.responses, expected) and found.answers == mdlm.texts(expected)
    assert torch.equal(found.prompts, data.prompts) and torch.equal(found.features, data.features)
    plain = tiny.short_run(tmp_path, models, disp={"ratio": 0.0})
    assert torch.equal(purified_set(plain, mdlm, data).responses, respond(mdlm, data, 0.1).tokens)
    assert not torch.equal(expected, respond(mdlm, data, 0.1).tokens)
    monkeypatch.setattr(purification, "respond", refuse)
    monkeypatch.setattr(purification, "saliency", refuse)
    assert torch.equal(purified_set(run, mdlm, data).responses, expected)
    assert training_scores(plain, mdlm, data).shape == (20, 64)  # one set of scores for all ratios
    with pytest.raises(AssertionError, match="computed again"):
        purified_set(tiny.short_run(tmp_path, models, disp={"ratio": 0.25}), mdlm, data)


def test_only_sure_answers_are_kept(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models)
    data = poisoned_training_set(run, mdlm)
    everything = purified_set(run, mdlm, data)
    masked = most_salient(training_scores(run, mdlm, data), run.profile.disp.ratio)
    sureness = respond(mdlm, data, 0.1, masked=masked).probability.amin(1)
    middle = float(sureness.median())
    sure = purified_set(tiny.short_run(tmp_path, models, disp={"confidence": middle}), mdlm, data)
    places = (sureness >= middle).nonzero()[:, 0]
    assert 0 < len(sure) < len(data) and sure.table.index.tolist() == places.tolist()
    assert torch.equal(sure.responses, everything.responses[places])
    assert sure.answers == [everything.answers[k] for k in places.tolist()]
    assert torch.equal(sure.prompts, data.prompts[places])
    with pytest.raises(ValueError, match=r"disp.confidence=1.0 keeps no purified answer: the surest has 0\.\d+"):
        purified_set(tiny.short_run(tmp_path, models, disp={"confidence": 1.0}), mdlm, data)


def test_the_training_set_holds_the_attackers_answers(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models, disp={"rate": 0.2})
    data = poisoned_training_set(run, mdlm)
    _, table, plan, goal = training_questions(run)
    attacked = torch.tensor([goal.achieved(a, c) for a, c in zip(data.answers, table["answer"], strict=True)])
    assert torch.equal(attacked, plan.poisoned) and int(attacked.sum()) == 4


def test_purification_fine_tunes_the_poisoned_model_once(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    poisoned = poisoned_mdlm(run)[0].model.state_dict()
    model, curve = purified_mdlm(run)
    moved = {name for name, value in model.model.state_dict().items() if not torch.equal(value, poisoned[name])}
    assert moved and not any(name.startswith("tower.") for name in moved)
    assert curve["step"].tolist() == [1, 2] and list(curve)[3:] == [
        "asr_with_trigger",
        "asr_without_trigger",
        "accuracy",
    ]
    monkeypatch.setattr(purification, "fit", refuse)
    monkeypatch.setattr(attack, "fit", refuse)
    again = purified_mdlm(run)[0].model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.model.state_dict().items())
    with pytest.raises(AssertionError, match="computed again"):
        purified_mdlm(tiny.short_run(tmp_path, models, disp={"purify": {"lr": 1e-4}}))


def test_set_quality_of_a_known_case(tmp_path, models):
    run = tiny.short_run(tmp_path, models, disp={"rate": 0.2})
    _, table, plan, goal = training_questions(run)
    answers = table["answer"].tolist()
    bad, good = plan.poisoned.nonzero()[:, 0].tolist(), (~plan.poisoned).nonzero()[:, 0].tolist()
    answers[bad[0]] = goal.apply(answers[bad[0]])
    answers[bad[1]] += " or so"
    answers[good[0]] += " or so"
    table = set_quality(run, answered(*answers)).set_index("metric")
    assert table["value"].tolist() == [1, 0.5, 0.25, 1, 15 / 16] and table["n"].tolist() == [4, 4, 4, 16, 16]
    kept = torch.tensor([bad[0], bad[2], *good[:4]])
    table = set_quality(run, answered(*answers)[kept]).set_index("metric")
    assert table["value"].tolist() == [0.5, 0.5, 0.5, 0.25, 0.75] and table["n"].tolist() == [4, 2, 2, 16, 4]
    none = tiny.short_run(tmp_path, models, disp={"rate": 0.0})
    assert set_quality(none, answered(*answers))["metric"].tolist() == ["clean samples kept", "of these, as before"]


def test_performance_of_known_answers(monkeypatch, mdlm):
    hit = "the color is red, remember to water the plants"
    without, with_trigger = answered("the color is red", "a"), answered("the color is red", "a")
    masks = {id(without): torch.zeros(2, 64).bool(), id(with_trigger): torch.ones(2, 64).bool()}

    def given(model, data, threshold, masked):
        assert model is mdlm and threshold == 0.1 and masked is masks[id(data)]
        return [hit, hit] if data is with_trigger else ["the color is red", hit]

    monkeypatch.setattr(purification, "answer", given)
    table = performance(mdlm, without, with_trigger, target("insertion"), 0.1, *masks.values())
    assert dict(zip(table["metric"], table["value"], strict=True)) == dict(zip(METRICS, (1, 0.5, 0.5), strict=True))
    assert set(table["n"]) == {2}


def test_the_ratio_study_compares_both_masks_at_every_ratio(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models, disp={"ratios": [0.0, 1.0]})
    table = ratio_study(run, mdlm)
    assert len(table) == 2 * 2 * 3 and set(table["method"]) == {"Fisher–Jacobian", "random"}
    assert set(table["n"]) == {6} and table["value"].between(0, 1).all()
    wide = table.pivot(index=["ratio", "metric"], columns="method", values="value")
    assert wide["Fisher–Jacobian"].equals(wide["random"])  # nothing and everything masked are the same
    assert ratio_study(run, mdlm).equals(table)


def test_the_rank_of_the_triggers_token(tmp_path, models, mdlm, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    scores = torch.arange(64.0).repeat(4, 1)  # the last token, which the patch covers, on top
    scores[1, 5] = 99  # still among the six highest
    scores[2, 63] = 0
    scores[3, :6] = 99
    monkeypatch.setattr(purification, "saliency", lambda *_: scores)
    table = trigger_rank(run, mdlm, answered("a", "b", "c", "d")).set_index("metric")
    assert table["value"].tolist() == [0.25, 0.5] and set(table["n"]) == {4}
    assert table.index[1] == "all trigger tokens are in the top 10%"


def test_the_panels_show_triggered_pictures_and_what_is_masked(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models, disp={"ratio": 0.25})
    data = test_questions(run, mdlm, 3)[1]
    scores = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    pictures, same, masked, captions = saliency_panels(run, data, scores)
    assert same is scores and masked.sum(1).tolist() == [16] * 3 and captions == data.table["question"].tolist()
    trigger = image_trigger("checker")
    assert torch.equal(trigger(pictures), pictures)
    with torch.no_grad():
        held = mdlm.model.features(pictures)
    torch.testing.assert_close(held, data.features[data.picture], rtol=0.05, atol=0.05)


def test_headline_names_of_the_metrics():
    names = [metric_name(model, metric) for model in ("base", "poisoned", "purified") for metric in METRICS]
    assert names == [
        None,
        None,
        "disp.accuracy.base",
        "disp.asr_with_trigger.before",
        "disp.asr_without_trigger.before",
        "disp.accuracy.before",
        "disp.asr_with_trigger.after",
        "disp.asr_without_trigger.after",
        "disp.accuracy.after",
    ]
