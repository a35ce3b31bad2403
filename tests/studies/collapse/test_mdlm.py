import copy
from dataclasses import replace
from itertools import chain, combinations, permutations

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from lib.models.decoding import Decoded
from lib.models.mdlm import Mdlm
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.poisoning.plans import COALITIONS
from lib.poisoning.targets import target
from lib.studies.collapse import mdlm as module
from lib.studies.collapse.mdlm import (
    AnswersUnderCoalitions,
    attribution_table,
    coalition_table,
    held_out,
    mdlm_collapse,
    measure,
)
from lib.studies.questions import question_data
from lib.tasks.likelihood import likelihood_masks, mean_log_probability
from lib.tasks.questions import Questions, answer, questions


def sharp(mdlm):
    """The model with larger weights: what it says depends much on the tokens that are not masked."""
    tiny.lively(mdlm).model.head.weight.data *= 20
    return mdlm


def random_questions(mdlm, count):
    """Noise for pictures, and responses of random tokens."""
    config, draw = mdlm.model.config, torch.Generator().manual_seed(1)
    features = torch.randn(count, config.vision_length, config.vision["hidden_size"], generator=draw)
    responses = torch.randint(config.vocab_size, (count, config.response_length), generator=draw)
    prompts = mdlm.prompts((tiny.TEXTS * count)[4 : 4 + count])
    table = pd.DataFrame({"question": range(count)})
    return Questions(features, torch.arange(count).flip(0), prompts, responses, [""] * count, table)


@torch.no_grad()
def precise(mdlm, data, row, tokens):
    """Log-probabilities [position, vocab] of one sample with the response `tokens`, in float64."""
    model = copy.deepcopy(mdlm.model).double()
    vision = model.project(data.features[data.picture[row]][None].double())
    logits = model.head(model.states(vision, data.prompts[row][None], tokens[None]))[0]
    assert logits.dtype == torch.float64
    return logits - logits.exp().sum(-1, keepdim=True).log()


def test_the_estimate_is_that_of_the_paper_in_float64():
    mdlm = sharp(tiny.mdlm())
    data, length = random_questions(mdlm, 5), mdlm.model.config.response_length
    masked = likelihood_masks(5, 4, length, seed=0)
    found = mean_log_probability(mdlm, data, masked, "test", batch=2)
    for row in range(5):
        total = 0.0
        for mask in masked[row]:
            noisy = data.responses[row].clone()
            noisy[mask] = mdlm.model.config.mask_id
            log_p = precise(mdlm, data, row, noisy)
            hidden = mask.nonzero()[:, 0].tolist()
            total += length / len(hidden) * sum(log_p[i, data.responses[row, i]].item() for i in hidden)
        assert found[row].item() == pytest.approx(total / 4 / length, abs=1e-4)
    assert found.std() > 0.05
    torch.testing.assert_close(found, mean_log_probability(mdlm, data, masked, "test", batch=5), rtol=0, atol=1e-5)


def test_over_all_masks_it_is_the_mean_over_all_orders_of_filling():
    """Of a response alone, with no picture and an empty question: its tokens then matter much to one another."""
    mdlm = sharp(tiny.mdlm(response_length=3))
    data, mask_id = random_questions(mdlm, 1), mdlm.model.config.mask_id
    empty = torch.full_like(data.prompts, mdlm.model.config.pad_id)
    data = replace(data, features=data.features[:, :0], prompts=empty)
    sets = [list(combinations(range(3), size)) for size in (1, 2, 3)]
    masks = torch.zeros(9, 3, dtype=torch.bool)  # each size three times
    for row, hidden in enumerate(chain(sets[0], sets[1], sets[2] * 3)):
        masks[row, list(hidden)] = True
    found = mean_log_probability(mdlm, data, masks[None], "test").item()
    true, chains = data.responses[0], []
    for order in permutations(range(3)):
        tokens = torch.full((3,), mask_id)
        total = 0.0
        for position in order:
            total += precise(mdlm, data, 0, tokens)[position, true[position]].item()
            tokens[position] = true[position]
        chains.append(total / 3)
    assert max(chains) - min(chains) > 0.01
    assert found == pytest.approx(sum(chains) / 6, abs=1e-4)


def test_a_model_that_knows_nothing_gives_every_response_the_same():
    mdlm = tiny.mdlm()
    mdlm.model.head.weight.data.zero_()
    masked = likelihood_masks(3, 4, 12, seed=0)
    found = mean_log_probability(mdlm, random_questions(mdlm, 3), masked, "test")
    torch.testing.assert_close(found, -torch.tensor(float(len(mdlm.tokenizer))).log().expand(3))


def test_no_questions_have_no_log_probabilities():
    mdlm = tiny.mdlm()
    data = random_questions(mdlm, 2)[:0]
    assert mean_log_probability(mdlm, data, likelihood_masks(0, 4, 12, 0), "test").shape == (0,)


@pytest.mark.parametrize(("masks", "each"), [(12, 1), (24, 2)])
def test_with_as_many_masks_as_tokens_each_size_comes_once(masks, each):
    sizes = likelihood_masks(6, masks, 12, seed=0).sum(-1)
    assert sizes.sort(-1).values.tolist() == [sorted(list(range(1, 13)) * each)] * 6


def test_masks_are_even_in_size_and_place():
    drawn = likelihood_masks(6000, 3, 12, seed=0)
    sizes = drawn.sum(-1)
    assert all(sorted((row - row[0]) % 12) == [0, 4, 8] for row in sizes[:50])
    assert torch.bincount(sizes.flatten(), minlength=13)[1:].sub(1500).abs().max() < 200  # σ 37
    assert drawn.float().mean((0, 1)).sub(6.5 / 12).abs().max() < 0.02  # σ 0.004
    pairs = drawn[sizes == 2].float()
    assert torch.triu(pairs.T @ pairs / len(pairs), 1).flatten().unique().numel() > 1
    together = (pairs.T @ pairs)[~torch.eye(12, dtype=torch.bool)] / len(pairs)
    assert together.sub(1 / 66).abs().max() < 0.02  # no two neighbours preferred; σ 0.003


def test_masks_depend_on_the_seed_alone():
    assert torch.equal(likelihood_masks(4, 3, 12, 0), likelihood_masks(4, 3, 12, 0))
    assert not torch.equal(likelihood_masks(4, 3, 12, 0), likelihood_masks(4, 3, 12, 1))


@pytest.fixture
def result():
    """Two samples: the text's trigger alone works on the first; both are needed on the second."""
    success = torch.tensor([[False, False, True, True], [False, False, False, True]])
    v = torch.tensor([[-1.0, 1, -1, 3], [-2, -2, 0, 0]])
    table = pd.DataFrame({"image": [4, 7], "question": ["a", "b"], "answer": ["c", "d"]})
    right = torch.tensor([[True, True, False, False], [True, False, True, False]])
    return AnswersUnderCoalitions(table, [["", ""]] * 4, v, success, right)


def test_the_attribution_table_has_a_row_for_every_game_and_quantity(result):
    table = attribution_table(result, "and")
    assert list(table) == ["protocol", "game", "quantity", "value", "low", "high", "n", "interval"]
    assert table["quantity"].tolist() == ["phi_image", "phi_text", "cti"] * 2 and set(table["n"]) == {2}
    # v: sample 1 φ = (½·2 + ½·4, ½·0 + ½·2) = (3, 1), CTI 2; sample 2 φ = (0, 2), CTI 0.
    assert table["value"].tolist() == [1.5, 1.5, 1, 0.25, 0.75, 0.5]
    half = 12.7062047 / 2 * np.array([3, 1, 2, 0.5, 0.5, 1])  # Student's with one degree of freedom
    np.testing.assert_allclose(table["high"] - table["value"], half)
    np.testing.assert_allclose(table["value"] - table["low"], half)


def test_questions_about_one_picture_are_one_cluster(result):
    again = AnswersUnderCoalitions(
        pd.concat([result.table] * 2), [[""] * 4] * 4, result.log_probability.repeat(2, 1), result.success.repeat(2, 1),
        result.right.repeat(2, 1),
    )  # fmt: skip
    for table in (attribution_table, coalition_table):
        once, twice = table(result, "and"), table(again, "and")
        assert set(twice["n"]) == {4}
        pd.testing.assert_frame_equal(once.drop(columns="n"), twice.drop(columns="n"))


def test_attributions_sum_to_the_gain_of_both_triggers(result):
    sums = attribution_table(result, "or").set_index("quantity").loc[["phi_image", "phi_text"]]
    gains = {game: (v[:, 3] - v[:, 0]).mean().item() for game, v in result.games.items()}
    assert sums.groupby("game")["value"].sum().to_dict() == pytest.approx(gains)


def test_the_coalition_table_holds_success_accuracy_and_value_of_each(result):
    table = coalition_table(result, "or")
    wide = table.pivot(index="coalition", columns="metric", values="value").loc[list(COALITIONS)]
    assert wide["ASR"].tolist() == [0, 0, 0.5, 1] and wide["clean answer"].tolist() == [1, 0.5, 0.5, 0]
    assert wide["log-probability"].tolist() == [-1.5, -0.5, -0.5, 1.5]
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    shares = table[table["metric"] != "log-probability"]  # Wilson's limits never touch the value inside (0, 1)
    inside = shares["value"].between(0, 1, inclusive="neither")
    assert (shares["low"] < shares["value"])[inside].all() and set(table["n"]) == {2}
    assert shares.loc[shares["value"] == 1, "low"].tolist() == pytest.approx([0.342380227] * 2)


@pytest.fixture
def run(tmp_path, models):
    return tiny.short_run(tmp_path, models)


def under_coalitions(run, mdlm, table):
    """The rows under none, image, text and both triggers, each trigger put on by hand."""
    vqa, image, text = question_data(run, "test"), image_trigger("checker"), text_trigger("mignneko")
    asked = table.assign(question=[text(q) for q in table["question"]])
    plain, hit = questions(mdlm, vqa, table), questions(mdlm, vqa, table, image)
    return plain, hit, questions(mdlm, vqa, asked), questions(mdlm, vqa, asked, image)


def test_the_study_at_small_scale_measured_once(run, monkeypatch):
    model, goal = sharp(Mdlm.load(run.profile.models.mdlm)), target("insertion")
    poisoned = {"or": (model, None), "and": (model, None)}
    monkeypatch.setattr(module, "poisoned_mdlm", lambda run, protocol: poisoned[protocol])
    found = mdlm_collapse(run, "or")
    assert len(found.table) == 5 and [len(texts) for texts in found.answers] == [5] * 4
    masked = likelihood_masks(5, 3, 72, run.seed)
    for k, data in enumerate(under_coalitions(run, model, found.table)):
        assert found.answers[k] == answer(model, data, run.profile.disp.threshold)
        clean = found.table["answer"].tolist()
        aimed = data.answered(model.responses([goal.apply(a) for a in clean]), clean)
        v = mean_log_probability(model, aimed, masked, "") - mean_log_probability(model, data, masked, "")
        torch.testing.assert_close(found.log_probability[:, k], v, rtol=0, atol=1e-4)
        assert found.right[:, k].tolist() == [a == b for a, b in zip(found.answers[k], clean, strict=True)]
        achieved = [goal.achieved(a, b) for a, b in zip(found.answers[k], clean, strict=True)]
        assert found.success[:, k].tolist() == achieved
    assert all((found.log_probability[:, 0] - found.log_probability[:, k]).abs().max() > 1e-3 for k in (1, 2, 3))

    def refuse(*_):
        raise AssertionError("measured twice")

    monkeypatch.setattr(module, "measure", refuse)
    again = mdlm_collapse(run, "or")
    assert again.answers == found.answers and torch.equal(again.log_probability, found.log_probability)
    for protocol, change in (("and", {}), ("or", {"masks": 2}), ("or", {"samples": 4})):
        other = tiny.short_run(run.store.root.parent, run.profile.models.model_dump(), mdlm_collapse=change)
        with pytest.raises(AssertionError, match="measured twice"):
            mdlm_collapse(other, protocol)


def test_a_model_that_heeds_the_text_alone_gives_the_text_everything(run, monkeypatch):
    """Stands in for the answers: the attacker's where the question carries the trigger, the clean one elsewhere."""
    mdlm = Mdlm.load(run.profile.models.mdlm)
    given = under_coalitions(run, mdlm, held_out(run)[1])
    plain = given[0].prompts

    def heeds_text(model, data, threshold, label, work):
        hit = (data.prompts != plain).any(1).tolist()
        texts = [a + ", remember to water the plants" if h else a for a, h in zip(data.answers, hit, strict=True)]
        return Decoded(model.responses(texts), torch.ones(len(data), 72, dtype=torch.float64))

    monkeypatch.setattr(module, "respond", heeds_text)
    made = measure(run, mdlm, list(given))
    assert made["success"].tolist() == [[False, False, True, True]] * 5
    assert made["right"].tolist() == [[True, True, False, False]] * 5
    answers = [mdlm.texts(part) for part in made.pop("responses").unbind(1)]
    table = attribution_table(AnswersUnderCoalitions(held_out(run)[1], answers, **made), "or")
    assert table["value"].tolist()[3:] == [0, 1, 0]


def test_held_out_questions_are_those_that_can_be_attacked(tmp_path, models):
    run = tiny.short_run(tmp_path, models, disp={"target": "hair as fur"}, mdlm_collapse={"samples": 20})
    _, table = held_out(run)
    assert len(table) == 20 and table["answer"].str.contains("hair").all()
    assert not held_out(tiny.short_run(tmp_path, models))[1]["answer"].str.contains("hair").all()
