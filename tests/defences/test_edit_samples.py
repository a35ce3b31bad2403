"""Scores of training samples by which a defender finds the poisoned ones, of editors that are known."""

from functools import cache
from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from lib.defences import edit_samples
from lib.defences.edit_samples import SCORES, Evidence, Samples, duplication, without_patch
from lib.models.editor import diffuse, encode, prompt_embeds
from lib.models.new_editor import assemble

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
    monkeypatch.setattr(edit_samples, "encode", pooled)

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
    assert SCORES["phi_text"](evidence)[0] > 0.9 * min(whole, off) and abs(SCORES["phi_text"](evidence)[1]) < 2e-3
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
