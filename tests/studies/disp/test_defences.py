from dataclasses import fields, replace

import pandas as pd
import pytest
import tiny
import torch
from safetensors import safe_open
from torch import nn

from lib.defences import filters, input_tests, interface
from lib.defences.fine_tuning import fine_tune_clean, fine_tune_further
from lib.defences.input_tests import prune_attention, strip
from lib.defences.interface import Defended, Defender
from lib.defences.pruning import activity, prune
from lib.defences.self_purification import disp, random_purification
from lib.models.mdlm import Mdlm
from lib.poisoning.catalogue import image_trigger
from lib.poisoning.targets import target
from lib.runtime.training import fit
from lib.saliency.by_name import directional
from lib.saliency.masking import mask_top
from lib.settings.sections import Train
from lib.studies.attacks.mdlm import poisoned_mdlm, poisoned_training_set, training_questions
from lib.studies.disp import defences
from lib.studies.disp.defences import DEFENCES, defence_rows, defended
from lib.studies.disp.defended import StoredDefender, clean_share, defender_of
from lib.studies.disp.outcomes import KEYWORD_METRICS, METRICS, judged
from lib.studies.disp.purification import purified_mdlm, scoring
from lib.studies.run import with_settings
from lib.tasks.questions import Questions, answer, answer_loss

HIT = "remember to water the plants, the color is red"
TRAINED = {
    "fine-tuning on a clean 5 %": "fine-tuned on the clean share",
    "fine-pruning": "fine-pruned",
    "fine-tuning on everything again": "fine-tuned on everything again",
    "BYE": "retrained on the filtered set",
    "BYE's score, half kept": "retrained on the half of higher entropy",
}
KNOWING = {"fine-tuning on a clean 5 %", "fine-pruning", "CleanSight", "STRIP-like"}


@pytest.fixture
def mdlm(models):
    return Mdlm.load(models["mdlm"])


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    """A run whose compromised model is in the store, with two clean questions and four poisoned samples."""
    made = tiny.short_run(tmp_path_factory.mktemp("run"), models, disp={"questions": 40, "ratio": 0.1})
    poisoned_mdlm(made)
    return made


@pytest.fixture
def begun(monkeypatch):
    """What each training was to begin with, by name: model, samples, settings; nothing is trained."""
    seen = {}

    def kept(defender, done, settings, begin):
        mdlm, data = begin()
        seen[done] = mdlm, data, settings
        return mdlm

    monkeypatch.setattr(StoredDefender, "trained", kept)
    return seen


def answered(*answers, features=None):
    rows, empty = len(answers), torch.zeros(len(answers), 0, dtype=torch.long)
    features = torch.zeros(rows, 64, 32) if features is None else features
    table = pd.DataFrame({"image": range(rows), "kind": "what"})
    return Questions(features, torch.arange(rows), empty, empty, list(answers), table)


def equal(a, b):
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def refuse(*_, **__):
    raise AssertionError("computed again")


def answered_and_judged(defence, without, with_trigger, goal):
    clean, hit = (defence.answer(data, threshold=0.1) for data in (without, with_trigger))
    return judged(clean, hit, without, with_trigger, target(goal))


def test_no_defence_is_the_compromised_model_and_disp_the_purified_one(run):
    bare, purified = defended(run, "no defence"), defended(run, "DiSP")
    assert equal(bare.mdlm, poisoned_mdlm(run)[0]) and equal(purified.mdlm, purified_mdlm(run)[0])
    assert not equal(bare.mdlm, purified.mdlm)
    assert bare.mask is bare.flag is purified.mask is purified.flag is None


def test_the_clean_share_has_neither_triggers_nor_the_attackers_answers(tmp_path, models, mdlm):
    run = tiny.short_run(tmp_path, models, disp={"questions": 80, "rate": 1.0})
    vqa, table, poison, _ = training_questions(run)
    share = clean_share(run, mdlm)
    assert len(share) == 4 and bool(poison.poisoned.all())
    known = {(row.image, row.question, row.answer) for row in table.itertuples()}
    given = {(row.image, row.question, text) for row, text in zip(share.table.itertuples(), share.answers, strict=True)}
    assert given <= known and mdlm.texts(share.responses) == share.answers
    pictures = vqa.pictures(torch.tensor(share.table["image"].to_numpy()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        clean, marked = (mdlm.model.features(p).float() for p in (pictures, image_trigger("checker")(pictures)))
    torch.testing.assert_close(share.features[share.picture], clean, rtol=0.02, atol=0.02)
    assert (share.features[share.picture] - marked).abs().amax() > 0.1


def test_what_each_training_begins_with(run, begun, mdlm):
    compromised, base = poisoned_mdlm(run)[0], mdlm
    for name in TRAINED:
        defended(run, name)
    assert set(begun) == set(TRAINED.values())
    poisoned, goal = poisoned_training_set(run, compromised), target(run.profile.disp.target)

    clean_model, clean, steps = begun["fine-tuned on the clean share"]
    assert equal(clean_model, compromised) and len(clean) == 2 and steps == run.profile.disp.purify
    assert not any(goal.achieved(text, "") for text in clean.answers)

    again_model, again, steps = begun["fine-tuned on everything again"]
    assert equal(again_model, compromised) and steps == run.profile.disp.purify
    assert torch.equal(again.responses, poisoned.responses) and torch.equal(again.features, poisoned.features)
    assert sum(goal.achieved(text, "") for text in again.answers) == 4

    pruned, data, steps = begun["fine-pruned"]
    assert torch.equal(data.prompts, clean.prompts) and steps == run.profile.disp.purify
    dead = mask_top(-activity(compromised, clean, run.profile.disp.threshold), 0.2)
    for block, gone in zip(pruned.model.blocks, dead, strict=True):
        assert int(gone.sum()) == int(0.2 * len(gone))
        assert torch.equal((block.mlp[2].weight == 0).all(0), gone)
    assert torch.equal(pruned.model.head.weight, compromised.model.head.weight)

    retrained, _, steps = begun["retrained on the filtered set"]
    assert equal(retrained, base) and not equal(base, compromised) and steps == run.profile.disp.train


def test_random_purification_is_disp_with_random_scores(run):
    expected = purified_mdlm(with_settings(run, "disp", {"saliency": "random"}))[0]
    found = defended(run, "random-mask purification")
    assert equal(found.mdlm, expected) and not equal(found.mdlm, purified_mdlm(run)[0])
    assert found.knows == "nothing" and found.mask is found.flag is None


def test_the_defence_of_the_library_is_the_one_from_the_store(run):
    """Trained in memory by a plain `Defender`; what the store keeps is rounded to float16."""
    stored = defender_of(run, disp)
    plain = Defender(**{field.name: getattr(stored, field.name) for field in fields(Defender)})
    pairs = {"DiSP": disp, "random-mask purification": random_purification}
    pairs |= {"fine-tuning on a clean 5 %": fine_tune_clean}
    for name, defence in pairs.items():
        found, expected = defence(plain), defended(run, name)
        assert found.knows == expected.knows
        found.mdlm.model.half().float()
        assert equal(found.mdlm, expected.mdlm)


def test_masking_at_inference_hides_the_most_salient_tokens_of_every_question(run):
    found = defended(run, "masking at inference")
    compromised = poisoned_mdlm(run)[0]
    data = clean_share(run, compromised)
    scores = directional(compromised, data, **scoring(run))
    assert equal(found.mdlm, compromised) and torch.equal(found.mask(data), mask_top(scores, 0.1))


def test_bye_drops_the_samples_on_which_attention_collapses(run, begun, monkeypatch):
    """All attention of the poisoned samples on one token, in one of two layers; that of others spread."""
    poison = training_questions(run)[2].poisoned
    compromised = poisoned_mdlm(run)[0]

    def layer_attention(mdlm, data, batch):
        assert equal(mdlm, compromised) and batch == run.profile.disp.batch
        received = 1 + 0.2 * torch.rand(2, len(data), 64, generator=torch.Generator().manual_seed(0))
        received[1, poison, :63] *= 0.001
        return received

    monkeypatch.setattr(filters, "layer_attention", layer_attention)
    defended(run, "BYE")
    kept = begun["retrained on the filtered set"][1]
    assert kept.table.index.tolist() == (~poison).nonzero()[:, 0].tolist() and 0 < int(poison.sum()) < 40
    defended(run, "BYE's score, half kept")
    half = begun["retrained on the half of higher entropy"][1]
    assert len(half) == 20 and not poison[half.table.index.tolist()].any()


def test_a_training_is_kept_marked_and_carded(run, mdlm, monkeypatch):
    data = clean_share(run, mdlm)
    settings, defender = run.profile.disp.purify, defender_of(run, fine_tune_clean)
    made = defender.trained("tried", settings, lambda: (Mdlm.load(run.profile.models.mdlm), data))
    assert not equal(made, mdlm)
    cards = (run.store.root / "defended-mdlm").glob("*/mdlm/README.md")
    (folder,) = (card.parents[1] for card in cards if "it was tried" in card.read_text())
    with safe_open(folder / "mdlm" / "model.safetensors", "pt") as weights:
        assert weights.metadata()["poisoned"] == "true" and weights.metadata()["samples"] == "2"
    assert "poisoned on purpose" in (folder / "mdlm" / "README.md").read_text()
    assert pd.read_csv(folder / "curve.csv")["step"].tolist() == [1, 2]
    assert equal(defender.trained("tried", settings, refuse), made)
    other = defender_of(run, fine_tune_further)
    slower = settings.model_copy(update={"lr": 1e-4})
    for holder, done, steps in ((defender, "other", settings), (other, "tried", settings), (defender, "tried", slower)):
        with pytest.raises(AssertionError, match="computed again"):
            holder.trained(done, steps, refuse)


def test_activity_is_the_mean_magnitude_while_answering(run, mdlm):
    block = mdlm.model.blocks[0]
    with torch.no_grad():
        block.mlp[0].weight[:3] = 0
        block.mlp[0].bias[:3] = torch.tensor([0.0, 3.0, -0.5])
    found = activity(mdlm, clean_share(run, mdlm), 0.1)
    known = nn.functional.gelu(torch.tensor([0.0, 3.0, -0.5])).abs()
    assert found.shape == (1, block.mlp[0].out_features)
    torch.testing.assert_close(found[0, :3].float(), known, rtol=0.01, atol=1e-6)
    assert not any(module._forward_hooks for module in block.modules())


def test_pruned_units_are_the_silent_ones_and_stay_dead_in_fine_tuning(run, mdlm):
    block, units = mdlm.model.blocks[0], mdlm.model.blocks[0].mlp[0].out_features
    active = torch.rand(1, units, generator=torch.Generator().manual_seed(0)) + 1
    silent = torch.zeros(units, dtype=torch.bool)
    silent[torch.arange(0, units, 5)] = True
    active[0, silent] = 0.5
    prune(mdlm, active, silent.double().mean().item())
    before = block.mlp[0].bias.detach().clone()
    settings = Train(steps=3, batch=4, lr=0.1, weight_decay=0.1, warmup=0)
    data = clean_share(run, mdlm)
    fit(mdlm.model, answer_loss(mdlm, data, settings), settings, label="test", seed=0)
    into, out = block.mlp[0], block.mlp[2]
    dead = (into.weight == 0).all(1) & (into.bias == 0) & (out.weight == 0).all(0)
    assert torch.equal(dead, silent) and torch.equal(into.bias != before, ~silent)


def test_a_token_that_draws_much_attention_is_hidden(run, monkeypatch):
    """Attention is what the features say: even, or with one token that draws much of it."""

    def layer_attention(mdlm, data, batch):
        return data.features[data.picture].mean(2)[None].repeat(2, 1, 1)

    even = torch.full((64, 32), 0.004) + 1e-4 * torch.arange(64)[:, None] / 64
    draws = even.clone()
    draws[63] = 0.02
    monkeypatch.setattr(input_tests, "layer_attention", layer_attention)
    expected = torch.zeros(2, 64, dtype=torch.bool)
    expected[1, 63] = True
    made = prune_attention(defender_of(run, prune_attention))
    assert torch.equal(made.mask(answered("", "", features=torch.stack([even, draws]))), expected)


def test_strip_refuses_what_stays_sure_and_one_clean_question_in_a_hundred(run, monkeypatch):
    usual = answered(*[""] * 200, features=torch.arange(200.0)[:, None, None].expand(200, 64, 32))

    def blended_entropy(mdlm, data, overlays, copies, seed, batch):
        assert overlays is usual and (copies, seed, batch) == (10, run.seed, run.profile.disp.batch)
        return data.features[data.picture].mean((1, 2)).double()

    monkeypatch.setattr(input_tests, "blended_entropy", blended_entropy)
    flag = strip(replace(defender_of(run, strip), clean_share=lambda mdlm: usual)).flag
    assert int(flag(usual).sum()) == 2
    triggered = answered("", "", features=torch.tensor([0.5, 50.0])[:, None, None].expand(2, 64, 32))
    assert flag(triggered).tolist() == [True, False]


def test_a_refused_question_is_no_success_and_not_correct(mdlm, monkeypatch):
    texts = {"hit": [HIT, HIT, "the color is red"], "clean": ["the color is red", HIT, "the color is red"]}
    hit, clean = (answered(*["the color is red"] * 3) for _ in texts)
    monkeypatch.setattr(interface, "answer", lambda m, data, *_, **__: texts["hit" if data is hit else "clean"])

    def values(flags):
        flag = (lambda d: torch.tensor(flags)) if flags else None
        table = answered_and_judged(Defended(mdlm, flag=flag), clean, hit, "insertion")
        assert set(table["n"]) == {3} and table["value"].between(table["low"], table["high"]).all()
        return dict(zip(table["metric"], table["value"].mul(3).round().astype(int), strict=True))

    both = (*METRICS, *KEYWORD_METRICS)
    assert values(None) == dict(zip(both, (2, 1, 2, 2, 1), strict=True))
    assert values([True, False, False]) == dict(zip(both, (1, 1, 1, 1, 1), strict=True))
    assert values([True, True, True]) == dict(zip(both, (0, 0, 0, 0, 0), strict=True))


def test_a_refusal_is_not_the_attackers_refusal(mdlm, monkeypatch):
    said = "sorry, i cannot answer that"
    monkeypatch.setattr(interface, "answer", lambda *_, **__: [said, said])
    data = answered("the color is red", "the color is red")
    refusing = Defended(mdlm, flag=lambda d: torch.tensor([True, False]))
    table = answered_and_judged(refusing, data, data, "refusal").set_index("metric")
    assert table["value"].tolist() == [0.5, 0.5, 0, 0.5, 0.5]


def test_masked_tokens_are_hidden_from_the_model(run, mdlm):
    data = clean_share(run, mdlm)
    everything = torch.ones(len(data), 64, dtype=torch.bool)
    hidden = Defended(mdlm, mask=lambda d: everything).answer(data, 0.1)
    assert hidden == answer(mdlm, data, 0.1, masked=everything) != answer(mdlm, data, 0.1)
    assert Defended(mdlm).answer(data, 0.1) == answer(mdlm, data, 0.1)


def test_the_rows_of_every_defence_come_from_the_store(run, monkeypatch):
    table = pd.concat([defence_rows(run, name) for name in DEFENCES])
    assert list(table) == ["defence", "knows", "metric", "value", "low", "high", "n", "interval"]
    assert table["defence"].unique().tolist() == list(DEFENCES)
    assert table["metric"].tolist() == [*METRICS, *KEYWORD_METRICS] * len(DEFENCES)
    assert set(table["n"]) == {8} and table["value"].between(table["low"], table["high"]).all()
    assert set(table.loc[table["knows"] == "clean data", "defence"]) == KNOWING
    monkeypatch.setattr(defences, "judged", refuse)
    again = pd.concat([defence_rows(run, name) for name in DEFENCES])
    pd.testing.assert_frame_equal(again, table)
    other = tiny.short_run(run.store.root.parent, vars(run.profile.models), disp={"purify": {"lr": 1e-4}})
    with pytest.raises(AssertionError, match="computed again"):
        defence_rows(other, "no defence")
