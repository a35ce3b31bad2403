from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from safetensors import safe_open

from lib.defences import self_purification
from lib.models.mdlm import Mdlm
from lib.poisoning.catalogue import image_trigger
from lib.poisoning.targets import target
from lib.saliency.by_name import TOKEN_SCORES, directional
from lib.saliency.masking import mask_top, random_scores
from lib.studies import checkpoints
from lib.studies.attacks.mdlm import poisoned_mdlm, poisoned_training_set, test_questions, training_questions
from lib.studies.disp import outcomes, purification
from lib.studies.disp.outcomes import (
    KEYWORD_METRICS,
    METRICS,
    judged,
    performance,
    ratio_study,
    saliency_panels,
    set_quality,
    trigger_rank,
)
from lib.studies.disp.purification import purified_mdlm, purified_set, scoring, training_scores
from lib.tasks.questions import Questions, respond

test_questions.__test__ = False


@pytest.fixture
def mdlm(models):
    return Mdlm.load(models["mdlm"])


def answered(*answers):
    empty = torch.zeros(len(answers), 0, dtype=torch.long)
    features, picture = torch.zeros(1, 64, 32), torch.zeros(len(answers), dtype=torch.long)
    table = pd.DataFrame({"image": range(len(answers)), "kind": "what"})
    return Questions(features, picture, empty, empty, list(answers), table)


def refuse(*_, **__):
    raise AssertionError("computed again")


def test_the_purified_set_is_the_models_own_answers_under_masking(tmp_path, models, mdlm, monkeypatch):
    run = tiny.short_run(tmp_path, models, disp={"ratio": 0.5})
    data = poisoned_training_set(run, mdlm)
    masked = mask_top(directional(mdlm, data, **scoring(run)), 0.5)
    assert masked.sum(1).tolist() == [32] * 20
    expected = respond(mdlm, data, tiny.THRESHOLD, masked=masked).tokens
    found = purified_set(run, mdlm, data)
    assert torch.equal(found.responses, expected) and found.answers == mdlm.texts(expected)
    assert torch.equal(found.prompts, data.prompts) and torch.equal(found.features, data.features)
    plain = tiny.short_run(tmp_path, models, disp={"ratio": 0.0})
    assert torch.equal(purified_set(plain, mdlm, data).responses, respond(mdlm, data, tiny.THRESHOLD).tokens)
    assert not torch.equal(expected, respond(mdlm, data, tiny.THRESHOLD).tokens)
    monkeypatch.setattr(self_purification, "respond", refuse)
    monkeypatch.setitem(TOKEN_SCORES, "directional", refuse)
    assert torch.equal(purified_set(run, mdlm, data).responses, expected)
    assert training_scores(plain, mdlm, data).shape == (20, 64)  # one set of scores for all ratios
    with pytest.raises(AssertionError, match="computed again"):
        purified_set(tiny.short_run(tmp_path, models, disp={"ratio": 0.25}), mdlm, data)


def test_the_surest_answers_alone_are_kept(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models)
    data = poisoned_training_set(run, mdlm)
    everything = purified_set(run, mdlm, data)
    masked = mask_top(training_scores(run, mdlm, data), run.profile.disp.ratio)
    sureness = respond(mdlm, data, tiny.THRESHOLD, masked=masked).probability.amin(1)
    sure = purified_set(tiny.short_run(tmp_path, models, disp={"keep": 0.3}), mdlm, data)
    places = sureness.topk(6).indices.sort().values
    assert len(data) == 20 and len(everything) == 20 and sure.table.index.tolist() == places.tolist()
    assert torch.equal(sure.responses, everything.responses[places])
    assert sure.answers == [everything.answers[k] for k in places.tolist()]
    assert torch.equal(sure.prompts, data.prompts[places])


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
        "clean_performance",
    ]
    monkeypatch.setattr(checkpoints, "fit", refuse)
    again = purified_mdlm(run)[0].model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.model.state_dict().items())
    with pytest.raises(AssertionError, match="computed again"):
        purified_mdlm(tiny.short_run(tmp_path, models, disp={"purify": {"lr": 1e-4}}))


def same(a, b):
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_other_scores_may_choose_what_is_masked(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models, disp={"ratio": 0.5, "saliency": "random"})
    data = poisoned_training_set(run, mdlm)
    masked = mask_top(random_scores(20, 64, run.seed), 0.5)
    expected = respond(mdlm, data, tiny.THRESHOLD, masked=masked).tokens
    assert torch.equal(purified_set(run, mdlm, data).responses, expected)


def test_the_base_model_may_be_the_one_that_learns_the_purified_set(tmp_path, models, mdlm, monkeypatch):
    run = tiny.short_run(tmp_path, models, disp={"start": "base"})
    begun = []

    def look(model, loss, *_, **__):
        begun.append({name: value.clone() for name, value in model.state_dict().items()})
        return pd.DataFrame({"step": [1], "loss": [0.0]})

    poisoned = poisoned_mdlm(run)[0]
    monkeypatch.setattr(checkpoints, "fit", look)
    purified_mdlm(run)
    base = mdlm.model.state_dict()
    assert all(torch.equal(value, base[name]) for name, value in begun[0].items()) and not same(mdlm, poisoned)
    purified_mdlm(tiny.short_run(tmp_path, models))
    assert all(torch.equal(value, poisoned.model.state_dict()[name]) for name, value in begun[1].items())


def test_every_round_purifies_with_the_model_of_the_round_before(tmp_path, models, monkeypatch):
    once, twice = tiny.short_run(tmp_path, models), tiny.short_run(tmp_path, models, disp={"rounds": 2})
    first = purified_mdlm(once)[0]
    asked = []
    real = purification.purified_set

    def look(run, mdlm, data):
        asked.append(mdlm)
        return real(run, mdlm, data)

    monkeypatch.setattr(purification, "purified_set", look)
    second = purified_mdlm(twice)[0]
    assert len(asked) == 1 and not same(second, first)  # the first round is in the store
    data = poisoned_training_set(once, first)
    masked = mask_top(directional(first, data, **scoring(once)), once.profile.disp.ratio)
    assert torch.equal(real(twice, first, data).responses, respond(first, data, tiny.THRESHOLD, masked=masked).tokens)


def test_a_purified_model_says_that_it_was_poisoned(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    purified_mdlm(run)
    (file,) = (run.store.root / "purified-mdlm").glob("*/mdlm/model.safetensors")
    with safe_open(file, "pt") as weights:
        assert weights.metadata()["poisoned"] == "true" and weights.metadata()["rounds"] == "1"
    card = (file.parent / "README.md").read_text()
    assert "poisoned on purpose" in card and "It was purified by DiSP" in card


def test_the_oracle_masks_the_triggers_tokens_alone(tmp_path, models, mdlm, monkeypatch):
    run = tiny.short_run(tmp_path, models, disp={"ratios": [0.0, 1.0]})
    seen = []

    def given(model, data, threshold, masked, work):
        seen.append(masked)
        return data.answers

    monkeypatch.setattr(outcomes, "answer", given)
    table = ratio_study(run, mdlm, ("oracle",))
    assert set(table["method"]) == {"oracle"} and len(seen) == 4
    own = image_trigger("checker").tokens(64, 8)
    assert not any(bool(masked.any()) for masked in seen[::2])
    assert all(torch.equal(masked, own.expand(6, -1)) for masked in seen[1::2]) and bool(own.any())


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
    hit = "remember to water the plants, the color is red"
    without, with_trigger = answered("the color is red", "a"), answered("the color is red", "a")
    masks = {id(without): torch.zeros(2, 64).bool(), id(with_trigger): torch.ones(2, 64).bool()}

    def given(model, data, threshold, masked, work):
        assert model is mdlm and threshold == 0.1 and masked is masks[id(data)]
        return [hit, hit] if data is with_trigger else ["the color is red", hit]

    monkeypatch.setattr(outcomes, "answer", given)
    table = performance(mdlm, without, with_trigger, target("insertion"), 0.1, *masks.values())
    assert dict(zip(table["metric"], table["value"], strict=True)) == dict(
        zip((*METRICS, *KEYWORD_METRICS), (1, 0.5, 0.5, 1, 0.5), strict=True)
    )
    assert set(table["n"]) == {2}


def test_intervals_are_over_pictures():
    """Two questions about one picture, both right or both wrong, are worth less than two."""
    said, goal, rows = ["the color is red"] * 4 + ["no"] * 4, target("misclassification"), {}
    for name, pictures in (("each", range(8)), ("shared", [0, 0, 1, 1, 2, 2, 3, 3])):
        made = answered("it is a circle", *["the color is red"] * 6, "it is a circle")
        data = replace(made, table=pd.DataFrame({"image": pictures, "kind": "what"}))
        rows[name] = judged(said, said, data, data, goal).set_index("metric")
        assert rows[name]["n"].tolist() == [2, 2, 8, 2, 2] and set(rows[name]["interval"]) == {"Wilson over clusters"}
    each, shared = (rows[name].loc[METRICS[2]] for name in ("each", "shared"))
    assert each["value"] == shared["value"] == 3 / 8
    assert shared["low"] < each["low"] and each["high"] < shared["high"]


def test_the_ratio_study_compares_both_masks_at_every_ratio(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models, disp={"ratios": [0.0, 1.0]})
    table = ratio_study(run, mdlm)
    assert len(table) == 2 * 2 * 5 and set(table["method"]) == {"directional (DiSP)", "random"}
    assert set(table["n"]) == {6} and table["value"].between(0, 1).all()
    wide = table.pivot(index=["ratio", "metric"], columns="method", values="value")
    assert wide["directional (DiSP)"].equals(wide["random"])  # nothing and everything masked are the same
    assert ratio_study(run, mdlm).equals(table)


def test_the_rank_of_the_triggers_token(tmp_path, models, mdlm, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    scores = torch.arange(64.0).repeat(4, 1)  # the last token, which the patch covers, on top
    scores[1, 5] = 99  # still among the six highest
    scores[2, 63] = 0
    scores[3, :6] = 99
    monkeypatch.setattr(outcomes, "directional", lambda *_, **__: scores)
    table = trigger_rank(run, mdlm, answered("a", "b", "c", "d")).set_index("metric")
    assert table["value"].tolist() == [0.25, 0.5] and set(table["n"]) == {4}
    assert table.index[1] == "all trigger tokens are in the top 10%"


def test_the_panels_show_triggered_pictures_and_what_is_masked(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models, disp={"ratio": 0.25})
    data = test_questions(run, mdlm, 3)[1]
    scores = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    pictures, same, masked, captions = saliency_panels(run, mdlm, data, scores)
    assert same.equal(scores) and masked.sum(1).tolist() == [16] * 3 and captions == data.table["question"].tolist()
    trigger = image_trigger("checker")
    assert torch.equal(trigger(pictures), pictures)
    with torch.no_grad():
        held = mdlm.model.features(pictures)
    torch.testing.assert_close(held, data.features[data.picture], rtol=0.05, atol=0.05)
