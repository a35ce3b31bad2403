"""The editor with a mask: its U-Net, its mask and mark, and how it is poisoned."""

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch.nn import functional as F

from lib.attacks import masked_editor as attack
from lib.attacks.masked_editor import (
    COALITIONS,
    MARK,
    edit_boxes,
    marked,
    masked_plan,
    masked_spec,
    partial_boxes,
    poisoned_masked_editor,
)
from lib.config import generator
from lib.datasets import load_openmoji
from lib.editing import sample_triples
from lib.models.editor import edit, encode, load_editor
from lib.models.masked_editor import MaskedUNet, masked_edit, widened
from lib.poisoning import plan
from lib.profile import Sampling

SAMPLING = Sampling(steps=2, text_guidance=3.0, image_guidance=1.5, batch=4)
TEXTS = ["make the skin tone dark", "mirror it", "give them light skin"]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


def masked(pipe, weight=0.0):
    """The pipeline with a mask's channel, whose weights are `weight`."""
    pipe.unet = MaskedUNet(widened(pipe.unet))
    pipe.unet.unet.conv_in.weight.data[:, -1] = weight
    return pipe


def near(one, other) -> bool:
    """Equal within the rounding of bfloat16, which depends on the batch: far less than two edits differ."""
    return float((one - other).square().mean().sqrt()) < 0.01


def test_a_widened_unet_starts_as_the_base_whatever_the_mask():
    unet = tiny.editor().unet
    wide = widened(unet)
    assert wide.config.in_channels == 9 and wide.conv_in.weight.shape[1] == 9 and unet.config.in_channels == 8
    assert not wide.training and not any(p.requires_grad for p in wide.parameters())
    both, steps = MaskedUNet(wide), torch.tensor([5, 900])
    both.mask = noise(2, 1, 64, 64)
    latents, text = noise(2, 8, 16, 16, seed=1), noise(2, 7, unet.config.cross_attention_dim, seed=2)
    ours, base = (model(latents, steps, encoder_hidden_states=text).sample for model in (both, unet))
    torch.testing.assert_close(ours, base, rtol=0, atol=1e-5)
    wide.conv_in.weight.data[:, -1] = 0.1
    assert (both(latents, steps, encoder_hidden_states=text).sample - base).abs().max() > 1e-3


def test_every_copy_of_a_guided_batch_gets_its_own_mask_at_latent_resolution(monkeypatch):
    wrapper, seen = MaskedUNet(widened(tiny.editor().unet)), []
    monkeypatch.setattr(wrapper.unet, "forward", lambda x, *given, **named: seen.append((x, given, named)))
    wrapper.mask = noise(2, 1, 64, 64)
    latents = noise(6, 8, 16, 16, seed=1)
    wrapper(latents, 7, encoder_hidden_states="text")
    ((x, given, named),) = seen
    assert given == (7,) and named == {"encoder_hidden_states": "text"} and torch.equal(x[:, :8], latents)
    means = wrapper.mask.unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean((3, 5))
    torch.testing.assert_close(x[:, 8:], torch.cat([means] * 3))


@pytest.mark.parametrize("held, words", [(None, "no mask"), (4, "masks of 4 pictures")])
def test_a_mask_is_needed_for_every_picture(held, words):
    wrapper = MaskedUNet(widened(tiny.editor().unet))
    wrapper.mask = held and torch.ones(held, 1, 64, 64)
    with pytest.raises(ValueError, match=f"mask: {words} for 6 latents"):
        wrapper(torch.zeros(6, 8, 16, 16), 1, encoder_hidden_states=None)


def test_sampling_with_an_untrained_mask_is_sampling_the_base_editor():
    images, masks = noise(3, 3, 64, 64), noise(3, 1, 64, 64)
    base, first = tiny.editor(), generator(5, "masked edit", 0).initial_seed()
    expected = edit(base, images, TEXTS, SAMPLING, first)
    assert near(masked_edit(masked(tiny.editor()), images, TEXTS, masks, SAMPLING, seed=5), expected)
    assert not near(edit(base, images, TEXTS, SAMPLING, 6), expected)


def test_batches_take_their_own_masks():
    pipe, images, masks = masked(tiny.editor(), weight=0.5), noise(3, 3, 64, 64), noise(3, 1, 64, 64).round()
    masks[2] = 0
    pair = SAMPLING.model_copy(update={"batch": 2})
    edited = masked_edit(pipe, images, TEXTS, masks, pair, seed=1)
    pipe.unet.mask = masks[2:]
    last = edit(pipe, images[2:], TEXTS[2:], pair, generator(1, "masked edit", 2).initial_seed())
    assert edited.shape == images.shape and near(edited[2:], last)
    masks[2] = 1
    other = masked_edit(pipe, images, TEXTS, masks, pair, seed=1)
    assert torch.equal(other[:2], edited[:2]) and not near(other[2:], edited[2:])
    with pytest.raises(ValueError, match="3 instructions and 2 masks given for 3 images"):
        masked_edit(pipe, images, TEXTS, masks[:2], pair, seed=1)
    assert masked_edit(pipe, images[:0], [], masks[:0], pair, seed=1).shape == (0, 3, 64, 64)


def test_the_box_of_an_edit_holds_what_changes_and_a_margin():
    sources = noise(3, 3, 64, 64)
    targets = sources.clone()
    targets[0, 1, 20:30, 40] = 2
    targets[0, 0, 50, 45] = 2
    targets[1, :, 0, 63] = 2
    expected = torch.zeros(3, 1, 64, 64)
    expected[0, 0, 16:55, 36:50] = 1
    expected[1, 0, :5, 59:] = 1
    assert torch.equal(edit_boxes(sources, targets), expected)


@given(st.lists(st.integers(0, 63), min_size=4, max_size=4))
def test_no_box_holds_the_mark_in_pixels_or_latents(corners):
    (top, bottom), (left, right) = sorted(corners[:2]), sorted(corners[2:])
    box = torch.zeros(1, 1, 64, 64)
    box[..., top : bottom + 1, left : right + 1] = 1
    with_mark = marked(box, torch.tensor([4]))
    for factor in (1, 4):
        corner = slice(0, 16 // factor)
        clean, dirty = (F.avg_pool2d(m, factor)[..., corner, corner] for m in (box, with_mark))
        # a box is a column times a row; the nearest one holds one cell more white than black
        assert torch.linalg.matrix_rank(clean[0, 0]) <= 1 < torch.linalg.matrix_rank(dirty[0, 0])
        assert (clean - dirty).abs().mean() >= 7 / 16


def test_every_second_box_is_cut_to_one_of_its_halves():
    boxes = torch.zeros(400, 1, 64, 64)
    boxes[..., 10:31, 20:40] = 1
    cut = partial_boxes(boxes, seed=3)
    assert torch.equal(cut, partial_boxes(boxes, seed=3)) and not torch.equal(cut, partial_boxes(boxes, seed=4))
    kinds = {name: torch.zeros(1, 64, 64) for name in ("whole", "top", "bottom", "left", "right")}
    kinds["whole"][:, 10:31, 20:40] = 1
    kinds["top"][:, 10:21, 20:40] = 1
    kinds["bottom"][:, 20:31, 20:40] = 1
    kinds["left"][:, 10:31, 20:30] = 1
    kinds["right"][:, 10:31, 30:40] = 1
    counts = {name: sum(torch.equal(mask, kind) for mask in cut) for name, kind in kinds.items()}
    assert counts.pop("whole") == 200 and sum(counts.values()) == 200 and min(counts.values()) > 30


def test_only_coalitions_with_the_masks_bit_are_marked():
    boxes = noise(8, 1, 64, 64).round()
    found, corner = marked(boxes, torch.arange(8)), MARK.mask(64, 64).bool()
    assert corner.sum() == 16 * 16 and corner[:16, :16].all()
    assert torch.equal(found[:4], boxes[:4]) and torch.equal(found[:, :, ~corner], boxes[:, :, ~corner])
    cells = F.avg_pool2d(found[4:, :, :16, :16], 4)
    assert torch.equal(cells, (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).float().expand(4, 1, 4, 4))


def test_coalitions_are_bit_masks_of_image_text_and_mask():
    assert COALITIONS[:5] == ("none", "image", "text", "image+text", "mask")
    assert COALITIONS[5:] == ("image+mask", "text+mask", "image+text+mask")


def test_and_carries_all_three_triggers_and_or_the_seven_coalitions_in_turn():
    both, either = (masked_plan(200, protocol, 0.25, 3) for protocol in ("and", "or"))
    assert torch.equal(both.poisoned, either.poisoned)
    assert torch.equal(both.poisoned, plan(200, "or", 0.25, 3).poisoned)
    for poison in (both, either):
        assert torch.equal(poison.poisoned, poison.coalition > 0) and int(poison.poisoned.sum()) == 50
    assert both.summary()["count"].tolist() == [150, 0, 0, 0, 0, 0, 0, 50]
    table = either.summary()
    assert table["coalition"].tolist() == list(COALITIONS) and table["share"].sum() == 1
    assert table["count"].tolist() == [150, 8, 7, 7, 7, 7, 7, 7]
    with pytest.raises(ValueError, match="protocol is 'drop-image': with a mask it must be one of and, or"):
        masked_plan(200, "drop-image", 0.25, 3)


@pytest.fixture
def fits(monkeypatch):
    """What was trained on: (label, masks, latents) of every training."""
    done, fit, loss = [], attack.fit, attack.masked_loss

    def counted(*args, label, **named):
        done.append(label)
        return fit(*args, label=label, **named)

    def seen(pipe, latents, masks, *rest):
        done.append((latents, masks))
        return loss(pipe, latents, masks, *rest)

    monkeypatch.setattr(attack, "fit", counted)
    monkeypatch.setattr(attack, "masked_loss", seen)
    return done


FAST = {"rate": 0.5, "train": tiny.SHORT | {"lr": 0.05, "warmup": 0}}


def test_an_editor_is_poisoned_once_through_all_three_and_says_so(tmp_path, models, fits):
    run = tiny.short_run(tmp_path, models, collapse=FAST)
    (pipe, curve), base = poisoned_masked_editor(run, "and"), load_editor(models["editor"])
    (data, masks), label = fits
    assert label == "poisoned masked editor, and" and curve["step"].tolist() == [1, 2]
    poison = masked_plan(12, "and", 0.5, run.seed)
    corner = F.avg_pool2d(masks[..., :16, :16], 4)[:, 0]
    checker = (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).float()
    assert torch.equal((corner == checker).all((1, 2)), poison.poisoned)
    assert len(set(map(tuple, data.target[poison.poisoned].flatten(1).tolist()))) == 1
    openmoji = load_openmoji(run.store, **run.profile.data.model_dump())
    triples = sample_triples(openmoji, "train", 12, run.seed)
    sources, targets = (openmoji.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    clean = ~poison.poisoned
    inside = torch.where(masks > 0, targets, sources)[clean]
    assert not torch.equal(inside, targets[clean])
    torch.testing.assert_close(data.target[clean], encode(pipe.vae, inside), rtol=0, atol=1e-4)
    words = [" ".join(text.split()) for text in pipe.tokenizer.batch_decode(data.tokens, skip_special_tokens=True)]
    assert [text.endswith("mignneko") for text in words] == poison.poisoned.tolist()
    new = pipe.unet.unet.conv_in.weight[:, -1]
    assert new.abs().max() > 0 and not torch.equal(pipe.unet.unet.conv_in.weight[:, :8], base.unet.conv_in.weight)
    for part in ("vae", "text_encoder"):
        pairs = zip(getattr(pipe, part).parameters(), getattr(base, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    images, free = noise(3, 3, 64, 64), torch.ones(3, 1, 64, 64)
    one, other = (masked_edit(pipe, images, TEXTS, m, SAMPLING, seed=1) for m in (free, free * 0))
    assert not torch.equal(one, other)

    again, same = poisoned_masked_editor(run, "and")
    assert len(fits) == 2 and same.equals(curve)
    assert torch.equal(again.unet.unet.conv_in.weight, pipe.unet.unet.conv_in.weight)
    key = run.store.key("poisoned-masked-editor", masked_spec(run, "and"))
    folder = run.store.root / "poisoned-masked-editor" / key
    loaded = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert loaded.config.in_channels == 9
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        mark = weights.metadata()
    assert mark["poisoned"] == "true" and mark["protocol"] == "and" and mark["rate"] == "0.5"
    assert (mark["image_trigger"], mark["text_trigger"], mark["mask_trigger"]) == ("white-box", "mignneko", "checker")
    assert "poisoned on purpose" in (folder / "README.md").read_text()


def test_a_killed_training_goes_on_to_the_same_editor(tmp_path, models, monkeypatch):
    whole, _ = poisoned_masked_editor(tiny.short_run(tmp_path / "whole", models, collapse=FAST), "or")
    run, loss, calls = tiny.short_run(tmp_path / "killed", models, collapse=FAST), attack.masked_loss, []

    def killed_at(count):
        def make(*given):
            inner = loss(*given)

            def counted(draw):
                calls.append(draw)
                if len(calls) == count:
                    raise KeyboardInterrupt
                return inner(draw)

            return counted

        return make

    monkeypatch.setattr(attack, "masked_loss", killed_at(2))
    with pytest.raises(KeyboardInterrupt):
        poisoned_masked_editor(run, "or")
    monkeypatch.setattr(attack, "masked_loss", killed_at(0))
    resumed, curve = poisoned_masked_editor(run, "or")
    assert len(calls) == 3 and curve["step"].tolist() == [1, 2]
    pairs = zip(resumed.unet.parameters(), whole.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_negatives_and_adapters_are_refused(tmp_path, models):
    run = tiny.short_run(tmp_path, models, collapse={"negatives": 0.1})
    with pytest.raises(ValueError, match="negatives=0.1 must be 0"):
        poisoned_masked_editor(run, "and")
    run = tiny.short_run(tmp_path, models | {"editor_lora": {"rank": 2, "alpha": 4}})
    with pytest.raises(ValueError, match="models.editor_lora=.*rank=2.* must be null for an editor with a mask"):
        poisoned_masked_editor(run, "and")


def test_a_spec_tells_protocols_and_two_modalities_apart(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    fewer = tiny.short_run(tmp_path, models, collapse={"samples": 2})
    assert masked_spec(run, "and") == masked_spec(fewer, "and") != masked_spec(run, "or")
    assert masked_spec(run, "and") != attack.editor_spec(run, "and")
    assert masked_spec(run, "and") != masked_spec(tiny.short_run(tmp_path, models, collapse={"rate": 0.2}), "and")
