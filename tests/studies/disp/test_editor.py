from types import SimpleNamespace

import pytest
import tiny
import torch

from lib.defences import edit_purification
from lib.models.editor import edit, load_editor, prompt_embeds, tokenize
from lib.saliency import edits
from lib.saliency.edits import CONDITIONS, GRID, condition_saliency, mask_condition
from lib.settings.profile import Sampling
from lib.studies import checkpoints
from lib.studies.collapse.editor import collapse
from lib.studies.disp import editor as module
from lib.studies.disp import editor_tables
from lib.studies.disp.editor import fine_tuning, purified_editor
from lib.studies.disp.editor_tables import SHARES, masking_curve, purification_table

TEXTS = ["make the skin dark", "give the person pale skin", "give the person pale skin"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.editor()


def latents(count, seed=0):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


class Linear(torch.nn.Module):
    """Channels 0 and 1 are `scale` times the source's, channel 2 begins with 3 times the first words' first entries."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x, step, encoder_hidden_states):
        assert step == 999
        out = x[:, :4] * 0
        out[:, :2] = x[:, 4:6] * self.scale
        out[:, 2].view(len(x), -1)[:, :4] = 3 * encoder_hidden_states[:, :4, 0]
        return SimpleNamespace(sample=out)


@pytest.mark.parametrize("probes", [1, 3])
def test_saliency_is_the_squared_norm_of_the_jacobian(probes):
    scale = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1))
    pipe = tiny.editor()
    pipe.unet = Linear(scale)
    patches, words = condition_saliency(pipe, latents(3), TEXTS, seed=0, probes=probes)
    cells = scale.square().sum(0).view(GRID, 2, GRID, 2).mean((1, 3)).flatten()
    torch.testing.assert_close(patches, cells.expand(3, -1))
    expected = torch.zeros(tokenize(pipe, TEXTS)["input_ids"].shape)
    expected[:, 1:4] = 9  # the first is the start token
    torch.testing.assert_close(words, expected)


def test_saliency_of_the_real_editor_is_that_of_finite_differences(pipe):
    """The sum over all patches against many random directions of the source."""
    tokens, source = tokenize(pipe, TEXTS[:1])["input_ids"], latents(1)
    patches, words = condition_saliency(pipe, source, TEXTS[:1], seed=5, probes=200)
    draw = torch.Generator().manual_seed(2)
    noise = torch.randn(source.shape, generator=edits.generator(5, "condition saliency"))
    text = prompt_embeds(pipe, TEXTS[:1])

    def guess(x):
        return pipe.unet(torch.cat([noise, x], 1), 999, encoder_hidden_states=text).sample.double()

    with torch.no_grad():
        moves = [torch.randn(source.shape, generator=draw) for _ in range(200)]
        slopes = [((guess(source + 0.01 * m) - guess(source - 0.01 * m)) / 0.02).square().sum() for m in moves]
    per_patch = source[0, 0].numel() / GRID**2  # a patch's score is the mean over its cells
    assert patches.sum().item() * per_patch == pytest.approx(torch.stack(slopes).mean().item(), rel=0.15)
    assert (words[0, tokens[0] == pipe.tokenizer.eos_token_id] == 0).all() and (words > 0).any()


def test_masking_takes_the_highest_patches_or_one_word(pipe):
    source = latents(3) + 5
    hidden, texts = mask_condition(pipe, source, TEXTS, "picture", 4 / 64, seed=0, batch=2)
    gone = (hidden == 0).view(3, 4, GRID, 2, GRID, 2)
    assert texts == TEXTS and (gone.flatten(1).sum(1) == 4 * 4 * 4).all()
    assert torch.equal(gone.any(1).any(2).any(-1), gone.all(1).all(2).all(-1))
    assert torch.equal(hidden[hidden != 0], source[hidden != 0])
    patches, words = condition_saliency(pipe, source[:2], TEXTS[:2], seed=0)
    assert torch.equal(gone.all(1).all(2).all(-1).flatten(1)[:2], edits.mask_top(patches, 4 / 64))
    unchanged, texts = mask_condition(pipe, source, TEXTS, "picture", 0.0, seed=0, batch=3)
    assert unchanged is source and texts is TEXTS


@pytest.mark.parametrize("made", [tiny.editor, tiny.minilm_editor])
def test_masking_takes_one_word_of_the_instruction(made):
    pipe, source = made(), latents(3)
    same, texts = mask_condition(pipe, source, TEXTS, "instruction", 0.1, seed=0, batch=3)
    assert torch.equal(same, source)
    for before, after in zip(TEXTS, texts, strict=True):
        left, rest = (pipe.tokenizer(text, add_special_tokens=False).input_ids for text in (before, after))
        assert len(rest) == len(left) - 1


def test_a_picture_masked_all_over_has_no_influence(pipe):
    sampling = Sampling(steps=2, text_guidance=1.5, image_guidance=1.2, batch=2)
    given = [mask_condition(pipe, latents(1, seed), TEXTS[:1], "picture", 1.0, 0, 2) for seed in (0, 1)]
    first, second = (edit(pipe, *one, sampling, seed=0) for one in given)
    plain = [edit(pipe, latents(1, seed), TEXTS[:1], sampling, seed=0) for seed in (0, 1)]
    assert torch.equal(first, second) and not torch.equal(*plain)


def test_the_tables_are_made_once(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    table = purification_table(run, "and")
    assert table["model"].unique().tolist() == ["before", *CONDITIONS]
    metrics = [f"ASR, {name}" for name in ("none", "image", "text", "both")]
    metrics += ["phi_image", "phi_text", "cti", "distance to the true edit"]
    assert all(part["metric"].tolist() == metrics for _, part in table.groupby("model"))
    before = table[table["model"] == "before"].set_index("metric")["value"]
    assert before["phi_image"] == pytest.approx(collapse(run, "and").phi[:, 0].mean().item())
    curve = masking_curve(run, "and")
    assert len(curve) == 2 * (len(SHARES) + 1) and set(curve["n"]) == {3}
    base = load_editor(models["editor"]).unet.state_dict()
    purified = purified_editor(run, "and", "picture").unet.state_dict()
    assert any(not torch.equal(base[key], purified[key]) for key in base)

    def refuse(*_, **__):
        raise AssertionError("computed again")

    parts = ((checkpoints, "fit"), (edit_purification, "edit"), (editor_tables, "edits_under_coalitions"))
    for owner, name in parts:
        monkeypatch.setattr(owner, name, refuse)
    assert purification_table(run, "and").equals(table) and masking_curve(run, "and").equals(curve)


def test_the_purified_editor_learns_its_own_masked_edits_of_the_poisoned_set(tmp_path, models, monkeypatch):
    run, seen = tiny.short_run(tmp_path, models, collapse={"rate": 0.5}), []
    real = module.edit_masked

    def look(pipe, images, texts, way, share, *others):
        seen.append((images, texts, way, share))
        return real(pipe, images, texts, way, share, *others)

    monkeypatch.setattr(module, "edit_masked", look)
    purified_editor(run, "and", "instruction")
    ((images, texts, way, share),) = seen
    assert (len(images), way, share) == (12, "instruction", module.RATIO)
    assert sum(text.endswith("mignneko") for text in texts) == 6


def test_fine_tuning_takes_three_passes(tmp_path, models):
    train = fine_tuning(tiny.short_run(tmp_path, models))
    assert train.steps == 3 * 12 // 4 and train.watch_every is None


def test_a_way_of_no_kind_is_refused(pipe):
    with pytest.raises(ValueError, match="way='sound' must be one of picture, instruction"):
        mask_condition(pipe, latents(1), TEXTS[:1], "sound", 0.1, 0, 2)
