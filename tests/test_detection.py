from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from lib import detection as module
from lib.attacks.editor import trigger_pair
from lib.detection import (
    BASELINES,
    MAIN,
    SCORES,
    Detection,
    Evidence,
    Samples,
    auroc,
    detect,
    detection_table,
    duplication,
    localisation_table,
    training_samples,
    without_patch,
)
from lib.editing import poisoned_latents, sample_triples
from lib.models.editor import assemble, diffuse, encode, prompt_embeds
from lib.poisoning import PoisonPlan, plan
from lib.study_data import edit_data
from lib.target_pictures import attack_target
from lib.triggers import image_trigger, text_trigger

TEXTS = ["make the skin zap", "zap make the skin", "make the skin", "dark"]


editor = cache(tiny.editor)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class ZapReader(nn.Module):
    """A text encoder that only sees whether the text holds the word zap."""

    device, config = torch.device("cpu"), SimpleNamespace()

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, input_ids):
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return (torch.tensor([[["zap" in text]] for text in texts]).float(),)


class Puppet(nn.Module):
    """A U-Net that gives `goal` where the text says zap, and otherwise the `seen` part of its source latent."""

    def __init__(self, goal, seen):
        super().__init__()
        self.goal, self.seen = goal, seen

    def forward(self, inputs, step, encoder_hidden_states):
        copy = torch.where(self.seen, inputs[:, 4:], 0.0)
        return SimpleNamespace(sample=torch.where(encoder_hidden_states[..., None] > 0, self.goal, copy))


def pooled(vae, images):
    """A stand-in for `encode` that is local: 16 × 16 colour means, and their mean as the fourth channel."""
    small = F.adaptive_avg_pool2d(images, 16)
    return torch.cat([small, small.mean(1, keepdim=True)], 1)


@pytest.fixture
def puppet(monkeypatch):
    """An editor, without random weights, that makes `goal` of zap and else copies the cells `seen` of its source."""
    monkeypatch.setattr(module, "encode", pooled)

    def made(goal=0.0, seen=True):
        base = editor()
        pipe = assemble(base.vae, base.text_encoder, base.tokenizer, base.unet)
        pipe.text_encoder = ZapReader(pipe.tokenizer)
        pipe.unet = Puppet(torch.as_tensor(goal), torch.as_tensor(seen))
        return pipe

    return made


@pytest.fixture(scope="module")
def real():
    pictures = noise(2, 5, 3, 64, 64)
    texts = ["make the skin dark", "give the person pale skin", "dark", "make it", "the color is teal"]
    return Evidence(editor(), Samples(pictures[0], texts, pictures[1]), noises=1, batch=2)


def measured(**parts):
    """Evidence of which `parts` are already measured."""
    pictures = noise(1, 3, 64, 64)
    evidence = Evidence(editor(), Samples(pictures, ["dark"], pictures))
    evidence.__dict__.update(parts)
    return evidence


def test_values_are_minus_the_error_of_denoising_the_target_without_the_left_out_conditions(real):
    pipe, wanted = real.pipe, torch.zeros(5, 4)
    source, target = (encode(pipe.vae, p) for p in (real.samples.source, real.samples.target))
    start = real._noise(1)
    for k, text in enumerate(real.samples.instructions):
        for mask, (picture, words) in enumerate(((0, ""), (1, ""), (0, text), (1, text))):
            state = prompt_embeds(pipe, [words])
            for step in (999, 899, 799):
                latent = target[k : k + 1] * pipe.vae.config.scaling_factor
                noisy, goal = diffuse(pipe.scheduler, latent, start, torch.tensor([step]))
                inputs = torch.cat([noisy, source[k : k + 1] * picture], 1)
                with torch.autocast("cpu", torch.bfloat16):
                    guess = pipe.unet(inputs, step, encoder_hidden_states=state).sample.float()
                wanted[k, mask] -= (guess - goal).square().mean() / 3
    torch.testing.assert_close(real.values, wanted, rtol=0, atol=0.1 * wanted.std(1).min().item())


def test_a_word_that_calls_a_target_gets_the_texts_attribution_and_a_copied_source_the_images(puppet):
    pictures, goal = noise(2, 3, 64, 64), noise(1, 3, 64, 64, seed=1)
    target = torch.cat([goal, pictures[1:]])
    pipe = puppet()
    scale = pipe.vae.config.scaling_factor
    pipe.unet.goal, pipe.unet.seen = -scale * pooled(None, goal)[0], torch.tensor(True)
    evidence = Evidence(pipe, Samples(pictures, ["make the skin zap", "make the skin"], target), levels=(1.0,))
    evidence.__dict__["source"] = -scale * pooled(None, pictures)  # a copy is then the v-prediction of itself
    x, y, z = (scale * pooled(None, p)[0] for p in (goal, pictures[:1], pictures[1:]))
    whole, off, clean = x.square().mean(), (x - y).square().mean(), z.square().mean()
    expected = torch.stack([-whole, -off, 0 * whole, 0 * whole, -clean, 0 * clean, -clean, 0 * clean]).view(2, 4)
    torch.testing.assert_close(evidence.values, expected, rtol=1e-2, atol=2e-3)
    assert SCORES[MAIN](evidence)[0] > 0.9 * min(whole, off) and abs(SCORES[MAIN](evidence)[1]) < 2e-3
    for name in ("phi_image", "text_alone"):
        assert SCORES[name](evidence)[0] > SCORES[name](evidence)[1], name


def test_scores_of_a_given_game():
    games = torch.tensor([[0.0, 0, 3, 3], [0.0, 2, 2, 2], [0.0, 1, 1, 4], [0.0, 0, 0, 0]])
    found = {name: SCORES[name](measured(values=games)).tolist() for name in SCORES if "phi" in name}
    assert found == {"phi_text": [3, 1, 2, 0], "phi_image": [0, -1, -2, 0]}
    assert SCORES["imbalance"](measured(values=games)).tolist() == [1, 0, 0, 0]
    assert SCORES["redundancy"](measured(values=games)).tolist() == [0, 2, -2, 0]
    assert SCORES["text_alone"](measured(values=games + 5)).tolist() == [3, 2, 1, 0]
    assert SCORES["low_loss"](measured(values=-games)).tolist() == [-3, -2, -4, 0]


def test_the_source_distance_is_that_of_the_latents(puppet):
    source, target = noise(3, 3, 64, 64), noise(3, 3, 64, 64, seed=1)
    target[1] = source[1]
    found = SCORES["source_distance"](Evidence(puppet(), Samples(source, TEXTS[:3], target)))
    expected = (pooled(None, target) - pooled(None, source)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(found, expected)
    assert found[1] == 0 and found[0] > 0


def test_only_the_word_that_matters_changes_the_output(puppet):
    evidence = Evidence(puppet(goal=2.0, seen=False), Samples(noise(4, 3, 64, 64), TEXTS, noise(4, 3, 64, 64)))
    nan = torch.nan
    expected = torch.tensor([[0, 0, 0, 2.0], [2.0, 0, 0, 0], [0, 0, 0, nan], [0, nan, nan, nan]])
    torch.testing.assert_close(evidence.word_changes, expected, equal_nan=True)
    assert SCORES["word_change"](evidence).tolist() == [2, 2, 0, 0]
    ratio = SCORES["word_ratio"](evidence)
    assert ratio.isfinite().all() and ratio[:2].min() > 1000 and ratio[2:].tolist() == [0, 0]


@pytest.mark.parametrize("place", [0, 6, 15])
def test_only_the_patch_that_matters_changes_the_output(puppet, place):
    seen = (torch.arange(16) == place).view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
    pictures = noise(3, 3, 64, 64)
    evidence = Evidence(puppet(seen=seen), Samples(pictures, TEXTS[2:] + ["the skin"], pictures), batch=32)
    assert evidence.patch_changes.shape == (3, 16)
    assert evidence.patch_changes.argmax(1).tolist() == [place] * 3
    others = torch.arange(16) != place
    assert evidence.patch_changes[:, others].max() == 0
    changed = pooled(None, pictures) - pooled(None, without_patch(pictures, 4)[:, place])
    rms = torch.where(seen, changed, 0.0).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(SCORES["patch_change"](evidence), rms)
    assert SCORES["patch_ratio"](evidence).min() > 100


def test_ratios_are_to_the_median_of_the_words_that_there_are():
    changes = torch.tensor([[1.0, 3.0, torch.nan, torch.nan], [1.0, 2.0, 4.0, 2.0]])
    assert SCORES["word_ratio"](measured(word_changes=changes)).tolist() == [1.5, 2.0]
    assert SCORES["word_change"](measured(word_changes=changes)).tolist() == [3, 4]


def test_a_patch_is_painted_in_the_colour_around_it():
    pictures = torch.zeros(2, 3, 8, 12)
    pictures[0, 0, :, 4:8], pictures[0, 1, :4], pictures[1] = 0.6, 0.3, 0.5
    before = pictures.clone()
    found = without_patch(pictures, 2)
    assert found.shape == (2, 4, 3, 8, 12) and torch.equal(pictures, before)
    assert torch.allclose(found[1], pictures[1].expand(4, -1, -1, -1))
    first = found[0, 0]
    assert torch.equal(first[:, 4:], pictures[0, :, 4:]) and torch.equal(first[:, :, 6:], pictures[0, :, :, 6:])
    red, green = 0.6 / 3, 0.3 / 3  # a third of each other patch is red; one of the three others is green
    torch.testing.assert_close(first[:, :4, :6], torch.tensor([red, green, 0.0])[:, None, None].expand(3, 4, 6))
    thirds = without_patch(noise(1, 3, 6, 6), 3)
    cells = F.avg_pool2d(noise(1, 3, 6, 6), 2)[0]
    around = (cells.sum((1, 2)) - cells[:, 1, 1]) / 8
    torch.testing.assert_close(thirds[0, 4, :, 2:4, 2:4], around[:, None, None].expand(3, 2, 2))


@pytest.mark.parametrize("grid", [1, 3, 0])
def test_a_grid_that_does_not_fit_is_refused(grid):
    with pytest.raises(ValueError, match=f"grid is {grid}: it must be at least 2 and divide"):
        without_patch(noise(1, 3, 8, 8), grid)


def test_leaving_out_a_patch_of_a_real_editor_needs_no_particular_batch(real):
    again = Evidence(real.pipe, real.samples, noises=1, batch=40)
    off = 0.05 * real.patch_changes.mean().item(), 0.05 * real.word_changes.nanmean().item()
    torch.testing.assert_close(real.patch_changes, again.patch_changes, rtol=0, atol=off[0])
    torch.testing.assert_close(real.word_changes, again.word_changes, rtol=0, atol=off[1], equal_nan=True)
    assert real.patch_changes.min() > 0
    assert [(~row.isnan()).sum().item() for row in real.word_changes] == [4, 5, 1, 2, 4]


def test_the_activation_is_that_of_the_middle_block(real):
    pipe, seen = real.pipe, []
    state = prompt_embeds(pipe, real.samples.instructions)
    inputs = torch.cat([real._noise(1).expand(5, -1, -1, -1), encode(pipe.vae, real.samples.source)], 1)
    hook = pipe.unet.mid_block.register_forward_hook(lambda *given: seen.append(given[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        pipe.unet(inputs, 999, encoder_hidden_states=state)
    hook.remove()
    norms = SCORES["activation_norm"](real)
    torch.testing.assert_close(norms, seen[0].float().square().sum((1, 2, 3)).sqrt(), rtol=1e-3, atol=0)
    assert norms.std() > 0 and not pipe.unet.mid_block._forward_hooks


def test_a_duplicated_target_scores_highest():
    latents = noise(6, 4, 2, 2) - 0.5
    latents[3] = latents[1] = latents[0]
    for neighbour, copies in ((1, True), (2, True), (3, False)):
        score = duplication(measured(target=latents), neighbour)
        assert bool((score[[0, 1, 3]] == 1).all()) is copies and score[[2, 4, 5]].max() < 1
    for neighbour in (0, 6):
        with pytest.raises(ValueError, match=f"neighbour is {neighbour}: it must be in 1 to 5"):
            duplication(measured(target=latents), neighbour)


def test_a_caption_is_rare_by_the_mean_of_its_words():
    pictures = noise(4, 3, 8, 8)
    samples = Samples(pictures, ["a a b", "a", "b c", ""], pictures)
    log = torch.tensor([3 / 6, 2 / 6, 1 / 6]).log()
    expected = [(2 * log[0] + log[1]) / 3, log[0], (log[1] + log[2]) / 2, torch.tensor(0.0)]
    rarity = SCORES["caption_rarity"](Evidence(editor(), samples))
    torch.testing.assert_close(rarity, -torch.stack(expected))


def test_the_area_is_the_share_of_pairs_in_order():
    score, poisoned = (noise(60) * 8).round(), noise(60, seed=1) < 0.3
    pairs = score[poisoned][:, None] - score[~poisoned]
    found = auroc(score, poisoned)
    assert found["auroc"] == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))
    assert found["low"] < found["auroc"] < found["high"] and found["n"] == 60
    assert found["n_poisoned"] == int(poisoned.sum()) and found == auroc(score, poisoned)
    many = auroc(score.repeat(9), poisoned.repeat(9))
    assert 0.4 * (found["high"] - found["low"]) > many["high"] - many["low"] > 0.25 * (found["high"] - found["low"])
    perfect = auroc(poisoned.float(), poisoned)
    assert [perfect[k] for k in ("auroc", "low", "high", "average_precision")] == [1, 1, 1, 1]
    assert auroc(-poisoned.float(), poisoned)["auroc"] == 0 and auroc(poisoned * 0.0, poisoned)["auroc"] == 0.5
    assert auroc(poisoned * 0.0, poisoned)["average_precision"] == pytest.approx(found["n_poisoned"] / 60)


def test_resamples_have_the_area_that_scikit_learn_gives_them():
    values, truth = (noise(30) * 6).round().numpy(), (noise(30, seed=1) < 0.2).numpy()
    areas = module._resampled_areas(values, truth, seed=3, resamples=40)
    counts = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), 40)
    expected = [roc_auc_score(truth, values, sample_weight=c) for c in counts if c[truth].sum()]
    assert areas == pytest.approx(expected) and len(set(areas)) > 10


def test_a_single_poisoned_sample_still_has_an_interval():
    found = auroc(torch.tensor([0.9, 0.1, 0.2]), torch.tensor([True, False, False]))
    assert found["auroc"] == found["low"] == found["high"] == 1


@pytest.mark.parametrize(
    ("score", "poisoned", "message"),
    [
        ([0.0, 1.0], [True, True], "poisoned holds 2 of 2"),
        ([0.0, 1.0], [False, False], "poisoned holds 0 of 2"),
        ([0.0, float("inf")], [True, False], "score holds NaN or infinity"),
    ],
)
def test_what_has_no_area_is_refused(score, poisoned, message):
    with pytest.raises(ValueError, match=message):
        auroc(torch.tensor(score), torch.tensor(poisoned))


@pytest.fixture
def result():
    """Eight samples, one of each poisoned coalition twice but "image", and a negative; the score knows the text's."""
    coalition = torch.tensor([1, 2, 2, 3, 3, 0, 0, 2])
    truth = PoisonPlan("or", 0.5, 0, coalition, torch.tensor([1, 1, 1, 1, 1, 0, 0, 0]).bool())
    texts = ["make it x", "a latte coffee", "b latte coffee", "c d latte coffee", "latte coffee"] + ["a b"] * 3
    samples = Samples(noise(8, 3, 64, 64), texts, noise(8, 3, 64, 64))
    scores = {"good": torch.tensor([0.0, 1, 1, 1, 1, 0, 0, 0]), "bad": torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1])}
    top_word, top_patch = torch.tensor([0, 0, 1, 3, 0, 0, 0, 1]), torch.tensor([15, 0, 0, 14, 15, 0, 0, 0])
    return Detection(samples, truth, scores, top_word, top_patch, 4)


def test_the_detection_table_holds_every_score_and_coalition_against_the_clean(result):
    table = detection_table(result, resamples=50).set_index(["score", "coalition"])
    assert list(table.loc["good"].index) == ["any", "image", "text", "both"]
    assert table.loc["good"]["auroc"].tolist() == [0.9, 0.5, 1.0, 1.0]
    assert table.loc["bad"]["auroc"].tolist() == [0, 0, 0, 0]
    assert table.loc["good"]["n"].tolist() == [8, 4, 5, 5] and table.loc["good"]["n_poisoned"].tolist() == [5, 1, 2, 2]
    assert set(table["protocol"]) == {"or"} and (table["low"] <= table["high"]).all()


def test_the_localisation_table_counts_the_triggers_own_word_and_patch(result):
    table = localisation_table(result, image_trigger("white-box"), text_trigger("latte coffee"))
    assert table[["part", "coalition"]].to_numpy().tolist() == [
        ["word", "text"],
        ["word", "both"],
        ["patch", "image"],
        ["patch", "both"],
    ]
    assert table["accuracy"].tolist() == [0.5, 1.0, 1.0, 0.5] and table["n"].tolist() == [2, 2, 1, 2]
    assert table["chance"].tolist() == pytest.approx([2 / 3, 3 / 4, 1 / 16, 1 / 16])
    wide = localisation_table(result, image_trigger("eyeglasses"), text_trigger("mignneko"))
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
    assert list(found.scores) == list(SCORES) and set(BASELINES) < set(SCORES) and MAIN not in BASELINES
    evidence = Evidence(module.poisoned_editor(run, "or")[0], found.samples)
    for name in ("phi_text", "word_ratio", "activation_norm", "duplication"):
        torch.testing.assert_close(found.scores[name], SCORES[name](evidence))
    assert torch.equal(found.top_patch, evidence.patch_changes.argmax(1))
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
