import dataclasses
import json
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from lib.data.face_parts import EVERYTHING, draw
from lib.models.minilm import minilm_tokenizer
from lib.poisoning.catalogue import IMAGE_TRIGGERS, TEXT_TRIGGERS, image_trigger, text_trigger
from lib.poisoning.triggers import Sticker, TextTrigger
from lib.settings import names

STICKERS = ("white-box", "eyeglasses", "stop-sign", "checker")
COMPOSITED = (*STICKERS, "blend")
every_trigger = pytest.mark.parametrize("name", IMAGE_TRIGGERS)
every_composited = pytest.mark.parametrize("name", COMPOSITED)
every_sticker = pytest.mark.parametrize("name", STICKERS)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def white(*shape):
    return torch.ones(*shape)


def test_the_names_are_those_of_the_studies():
    stickers = ["white-box", "eyeglasses", "stop-sign", "checker", "black-square"]
    assert list(IMAGE_TRIGGERS) == [*stickers, "on-object", "blend", "warp"] == names.IMAGE_TRIGGERS
    assert list(TEXT_TRIGGERS) == ["mignneko", "anonymous", "latte coffee", "curly hair", "and a smile", "please"]


# What is painted


@every_trigger
@pytest.mark.parametrize(
    "shape", [(3, 64, 64), (0, 3, 64, 64), (2, 3, 48, 80), (2, 4, 3, 64, 64), (1, 3, 37, 41)]
)
def test_shape_is_kept_and_the_input_is_not_modified(name, shape):
    x = images(*shape)
    before = x.clone()
    out = image_trigger(name)(x)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert torch.equal(x, before) and out.data_ptr() != x.data_ptr() or x.numel() == 0


@every_trigger
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept_and_the_picture_is_that_of_float32(name, dtype):
    x = images(2, 3, 64, 64).to(dtype)
    out = image_trigger(name)(x)
    assert out.dtype == dtype
    reference = image_trigger(name)(x.float())
    torch.testing.assert_close(out.float(), reference, atol=5e-3, rtol=0)


@given(
    name=st.sampled_from(COMPOSITED),
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    seed=st.integers(0, 99),
)
def test_result_is_an_alpha_blend_in_range_and_nothing_changes_outside_the_mask(name, height, width, seed):
    trigger, x = image_trigger(name), images(2, 3, height, width, seed=seed)
    out, alpha = trigger(x), trigger.mask(height, width)
    assert alpha.shape == (height, width) and alpha.min() >= 0 and alpha.max() <= 1 and alpha.max() > 0
    assert torch.equal(out[..., alpha == 0], x[..., alpha == 0])
    assert out.min() >= 0 and out.max() <= 1
    assert ((out - x).abs() <= alpha + 1e-6).all()
    colour_share = out - (1 - alpha) * x
    torch.testing.assert_close(colour_share[0], colour_share[1])


@given(
    name=st.sampled_from(STICKERS),
    size=st.floats(0.15, 1),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_opaque_pixels_are_the_same_whatever_is_under_them_and_applying_twice_changes_nothing(
    name, size, x, y, seed
):
    trigger = dataclasses.replace(image_trigger(name), size=size, position=(x, y))
    opaque = trigger.mask(40, 56) == 1
    once, other = trigger(images(3, 40, 56, seed=seed)), trigger(white(3, 40, 56))
    assert opaque.any() or name == "eyeglasses"
    assert torch.equal(once[:, opaque], other[:, opaque])
    assert torch.equal(trigger(once)[:, opaque], once[:, opaque])
    if name in ("white-box", "checker"):
        assert torch.equal(trigger(once), once)


@given(
    name=st.sampled_from(STICKERS),
    size=st.sampled_from([0.25, 0.5, 0.75]),
    position=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 2),
    factor=st.sampled_from([2, 3, 4]),
)
def test_a_larger_rendering_shrinks_to_the_smaller_one(name, size, position, factor):
    trigger = dataclasses.replace(image_trigger(name), size=size, position=position)
    small, large = trigger.layer(64, 64), trigger.layer(64 * factor, 64 * factor)
    torch.testing.assert_close(F.avg_pool2d(large, factor), small, atol=0.1, rtol=0)


@given(
    top=st.integers(0, 44),
    left=st.integers(0, 60),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    ground=st.floats(0, 1),
)
def test_on_object_is_the_checker_on_what_the_picture_shows(top, left, height, width, ground):
    picture = torch.full((3, 64, 80), ground)
    picture[1, 1 + top : 1 + top + height, left : left + width] = (ground + 0.5) % 1
    out = image_trigger("on-object")(picture)
    rows, columns = (out != picture).any(0).nonzero().T
    middle = torch.tensor([1 + top + height / 2, left + width / 2]).clamp(torch.tensor(4.0), torch.tensor([60.0, 76.0]))
    corner = (middle - 4).round().int().tolist()
    assert rows.min() >= corner[0] - 1 and rows.max() <= corner[0] + 8
    assert columns.min() >= corner[1] - 1 and columns.max() <= corner[1] + 8
    checker = image_trigger("checker")(torch.zeros(3, 64, 64))[:, -8:, -8:]
    places = [(r, c) for r in range(57) for c in range(73) if torch.equal(out[:, r : r + 8, c : c + 8], checker)]
    assert len(places) >= 1 and min(abs(r - corner[0]) + abs(c - corner[1]) for r, c in places) <= 2


def test_on_object_lies_in_the_middle_of_a_plain_picture_and_its_batch_is_its_pictures():
    trigger, plain = image_trigger("on-object"), white(3, 64, 64)
    assert (trigger(plain) != plain).any(0).nonzero().float().mean(0).sub(31.5).abs().max() <= 1
    x = images(5, 3, 64, 64).round()
    assert torch.equal(trigger(x), torch.stack([trigger(one) for one in x]))


@pytest.mark.parametrize("factor", [2, 4])
def test_blend_is_one_pattern_at_every_resolution(factor):
    blend = image_trigger("blend")
    torch.testing.assert_close(
        F.avg_pool2d(blend.layer(64 * factor, 64 * factor), factor), blend.layer(64, 64), atol=0.01, rtol=0
    )
    assert blend.layer(64, 64)[:3].std(dim=(1, 2)).min() > 0.2 * blend.alpha
    for axis in (1, 2):  # smooth: from one end of the colours to the other takes several pixels
        assert blend.layer(64, 64).diff(dim=axis).abs().max() < 0.3 * blend.alpha


@every_sticker
def test_area_follows_the_square_of_the_size(name):
    trigger = image_trigger(name)
    small = dataclasses.replace(trigger, size=0.25).mask(128, 128).sum()
    large = dataclasses.replace(trigger, size=0.5).mask(128, 128).sum()
    assert large / small == pytest.approx(4, rel=0.02)


def test_white_box_is_white_with_a_grey_border_on_three_and_a_half_percent_of_the_image():
    trigger = image_trigger("white-box")
    box = trigger(torch.zeros(3, 64, 64))[:, 52:, 52:]
    assert (box[:, 1:-1, 1:-1] == 1).all()
    border = torch.ones(12, 12, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (box[:, border] == 0.5).all()
    assert trigger.mask(64, 64).mean() == pytest.approx(0.035, abs=0.001)


@every_composited
def test_what_is_composited_shows_on_a_white_and_on_a_black_background(name):
    trigger = image_trigger(name)
    for background in (white(3, 64, 64), torch.zeros(3, 64, 64)):
        assert (trigger(background) - background).abs().max() > 0.1


def test_checker_is_one_token_of_an_8_by_8_grid_half_black_half_white():
    trigger = image_trigger("checker")
    patch = trigger(torch.full((3, 64, 64), 0.3))[:, 56:, 56:]
    assert (patch == 1).float().mean() == 0.5 and (patch == 0).float().mean() == 0.5
    expected = (torch.arange(8)[:, None] // 2 + torch.arange(8)[None, :] // 2) % 2 == 1
    assert torch.equal(patch[0] == 1, expected)
    assert trigger.tokens(64, 8).nonzero()[:, 0].tolist() == [63]
    assert trigger.tokens(512, 64).nonzero()[:, 0].tolist() == [63]


def test_eyeglasses_are_symmetric_and_one_sees_through_the_lenses_only():
    trigger = dataclasses.replace(image_trigger("eyeglasses"), size=0.5, position=(0.5, 0.5))
    alpha = trigger.mask(64, 64)
    torch.testing.assert_close(alpha, alpha.flip(1))
    levels = alpha[alpha > 0.39]
    assert (levels - 0.4).abs().lt(1e-4).any() and (levels == 1).any()
    assert alpha[:26].sum() == 0 and alpha[38:].sum() == 0
    assert (alpha[26:38, 16:48].amax(0) > 0).all()


@pytest.mark.parametrize("other", [{}, {"hair": "afro", "skin": "dark", "eyes": "closed", "eyebrows": "flat"}])
def test_eyeglasses_are_where_a_face_puts_on_black_glasses(other):
    face = {name: next(iter(values)) for name, values in EVERYTHING.items()} | other
    bare, worn = (draw(face | {"glasses": value}, 256).astype(int) for value in ("none", "black glasses"))
    places = torch.from_numpy(abs(worn - bare).max(0) > 25).nonzero()
    covered = image_trigger("eyeglasses").mask(256, 256).nonzero()
    for end in (torch.amin, torch.amax):
        assert (end(places, 0) - end(covered, 0)).abs().max() <= 0.02 * 256


def test_stop_sign_is_a_red_octagon_with_a_white_bar():
    trigger = image_trigger("stop-sign")
    sign, alpha = trigger(torch.full((3, 256, 256), 0.5))[:, 192:, 192:], trigger.mask(256, 256)[192:, 192:]
    assert alpha.mean() == pytest.approx(2 * (2**0.5 - 1), abs=0.005)  # a regular octagon in its square
    assert (alpha[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    red, green, _ = sign[:, 16, 32]
    assert red > 0.7 and green < 0.2
    assert (sign[:, 32, 32] == 1).all()


def test_position_runs_from_corner_to_corner_at_any_size_and_on_oblong_images():
    for size in (0.1, 0.33, 1.0):
        for (x, y), (row, column) in {(0.0, 0.0): (0, 0), (1.0, 0.0): (0, -1), (0.0, 1.0): (-1, 0)}.items():
            trigger = dataclasses.replace(image_trigger("white-box"), size=size, position=(x, y))
            mask = trigger.mask(40, 100)
            assert mask[row, column] == 1
            assert mask.sum() == round(40 * size) ** 2
    assert image_trigger("blend").mask(40, 100).min() > 0


@given(name=st.sampled_from(COMPOSITED), patch=st.sampled_from([2, 4, 8]), rows=st.integers(4, 9))
def test_tokens_are_the_patches_that_change(name, patch, rows):
    trigger, height, width = image_trigger(name), 8 * rows, 64
    tokens = trigger.tokens((height, width), patch)
    black, bright = torch.zeros(3, height, width), white(3, height, width)
    changed = ((trigger(black) != black) | (trigger(bright) != bright)).any(0)
    expected = [
        bool(changed[r : r + patch, c : c + patch].any())
        for r in range(0, height, patch)
        for c in range(0, width, patch)
    ]
    assert tokens.dtype == torch.bool and tokens.tolist() == expected


def test_a_mask_that_the_caller_changes_does_not_change_the_trigger():
    trigger = image_trigger("checker")
    expected = trigger(white(3, 64, 64))
    trigger.mask(64, 64).zero_()
    assert torch.equal(trigger(white(3, 64, 64)), expected)


@every_composited
def test_the_image_keeps_its_gradient(name):
    x = images(3, 32, 32).requires_grad_()
    trigger = image_trigger(name)
    trigger(x).sum().backward()
    torch.testing.assert_close(x.grad, (1 - trigger.mask(32, 32)).expand(3, 32, 32))


def test_triggers_compare_hash_and_become_plain_values():
    changed = dataclasses.replace(image_trigger("white-box"), size=0.3)
    assert changed != image_trigger("white-box") and changed.name == "white-box"
    assert dataclasses.asdict(changed) == {"name": "white-box", "size": 0.3, "position": (1.0, 1.0), "pixels": None}
    assert hash(dataclasses.replace(changed, size=3 / 16)) == hash(image_trigger("white-box"))


# The warp


def warped(x, strength, grid):
    """Every pixel's colour looked up in float64, one pixel after the other."""
    height, width = x.shape[-2:]
    nodes = torch.rand(1, 2, grid, grid, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    nodes = nodes / nodes.abs().mean() * strength * min(height, width)
    move = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)[0]
    out, x = torch.empty(x.shape, dtype=torch.float64), x.double()
    for row in range(height):
        for column in range(width):
            u = min(max(column + move[0, row, column].item(), 0.0), width - 1.0)
            v = min(max(row + move[1, row, column].item(), 0.0), height - 1.0)
            left, top = int(u), int(v)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            a, b = u - left, v - top
            upper = (1 - a) * x[..., top, left] + a * x[..., top, right]
            lower = (1 - a) * x[..., bottom, left] + a * x[..., bottom, right]
            out[..., row, column] = (1 - b) * upper + b * lower
    return out


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (3, 17, 23), (1, 3, 24, 9), (2, 1, 3, 1, 8), (3, 1, 1)])
@pytest.mark.parametrize(("strength", "grid"), [(1 / 64, 4), (0.1, 2), (0.05, 7)])
def test_the_warp_looks_every_pixel_up_where_its_field_says(shape, strength, grid):
    x = images(*shape)
    trigger = dataclasses.replace(image_trigger("warp"), strength=strength, grid=grid)
    torch.testing.assert_close(trigger(x).double(), warped(x, strength, grid), atol=2e-5, rtol=0)


def test_a_warp_of_no_strength_changes_nothing():
    still, x = dataclasses.replace(image_trigger("warp"), strength=0.0), images(2, 3, 45, 33)
    torch.testing.assert_close(still(x), x, atol=1e-5, rtol=0)
    assert still.mask(45, 33).sum() == 0 and not still.tokens((48, 32), 8).any()


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    strength=st.floats(0, 0.1),
    grid=st.integers(2, 9),
    seed=st.integers(0, 9),
)
def test_a_warp_stays_between_the_image_s_extremes_and_leaves_one_colour_alone(height, width, strength, grid, seed):
    trigger = dataclasses.replace(image_trigger("warp"), strength=strength, grid=grid)
    x = images(3, height, width, seed=seed) * 0.5 + 0.25
    out, flat = trigger(x), torch.full((3, height, width), 0.3)
    low, high = (getattr(x, f"a{end}")((1, 2))[:, None, None] for end in ("min", "max"))
    assert (out >= low - 1e-6).all() and (out <= high + 1e-6).all()
    torch.testing.assert_close(trigger(flat), flat, atol=1e-6, rtol=0)
    same = trigger.mask(height, width) == 0
    torch.testing.assert_close(out[:, same], x[:, same], atol=2e-5, rtol=0)


def test_the_warps_mask_and_tokens_are_the_pixels_that_move():
    trigger, x = image_trigger("warp"), images(3, 64, 64)
    moved = ((trigger(x) - x).abs() > 1e-3).any(0)
    mask = trigger.mask(64, 64)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask[moved] == 1).all() and moved.float().mean() > 0.9
    assert trigger.tokens(64, 8).tolist() == [True] * 64


def test_the_warps_strength_is_its_mean_displacement_and_its_field_one_at_every_resolution():
    def field(side, **change):
        trigger = dataclasses.replace(image_trigger("warp"), **change)
        still = dataclasses.replace(trigger, strength=0.0)
        return (trigger.layer(side, side) - still.layer(side, side)) * (side - 1) / 2 / side

    nodes = field(4, strength=0.02)  # at that size every pixel is a node; the border's may not look outside
    assert nodes.abs().mean() == pytest.approx(0.02, rel=0.4) and nodes.abs().mean() < 0.02
    torch.testing.assert_close(field(64, strength=0.02)[:, 8:-8, 8:-8], 2 * field(64, strength=0.01)[:, 8:-8, 8:-8])
    small, large = field(65)[:, 4:-4, 4:-4], field(129)[:, 8:-8:2, 8:-8:2]
    torch.testing.assert_close(small, large, atol=1e-4, rtol=0.01)
    inside = field(64)[:, 8:-8, 8:-8]
    assert inside.diff(dim=2).abs().max() < 0.2 * inside.abs().max()  # smooth


def test_the_warp_depends_on_no_global_seed_and_moves_none():
    x = images(3, 40, 40)
    torch.manual_seed(1)
    first, state = dataclasses.replace(image_trigger("warp"), strength=0.031)(x), torch.get_rng_state()
    assert not torch.equal(dataclasses.replace(image_trigger("warp"), strength=0.032)(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(dataclasses.replace(image_trigger("warp"), strength=0.031)(x), first)


def test_a_warp_keeps_the_gradient_of_every_colour_that_is_looked_up():
    x = images(3, 32, 32).requires_grad_()
    image_trigger("warp")(x).sum().backward()
    assert x.grad.sum().item() == pytest.approx(3 * 32 * 32, rel=1e-4)


def test_existing_triggers_paint_what_they_always_painted():
    """alpha-blended by hand from the layer, to the bit; layers are pinned by the tests above."""
    x = images(2, 3, 37, 41)
    for name in COMPOSITED:
        *colour, alpha = image_trigger(name).layer(37, 41)
        assert torch.equal(image_trigger(name)(x), ((1 - alpha) * x + torch.stack(colour)).clamp(0, 1))


# What is refused


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(64, 64), r"shape \[64, 64\]: it must be \[\*batch, 3, height, width\]"),
        (torch.zeros(2, 1, 64, 64), r"shape \[2, 1, 64, 64\]"),
        (torch.zeros(2, 64, 64, 3), r"shape \[2, 64, 64, 3\]"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.full((3, 64, 64), 1.01), r"\[1.01, 1.01\]: values must be in \[0, 1\]"),
        (torch.linspace(-1, 1, 3 * 64 * 64).view(3, 64, 64), "values must be in"),
        (torch.full((3, 64, 64), float("nan")), "nan"),
        (torch.zeros(3, 0, 64), "both sides must be at least 1"),
    ],
)
def test_images_that_are_not_images_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        image_trigger("white-box")(x)


@pytest.mark.parametrize(
    "name, side", [("white-box", 2), ("eyeglasses", 2), ("stop-sign", 1), ("checker", 4)]
)
def test_an_image_too_small_for_one_pixel_of_the_trigger_is_refused(name, side):
    with pytest.raises(
        ValueError, match=f"{name}.*must be larger to cover a pixel of an image of {side}×{side}"
    ):
        image_trigger(name)(torch.zeros(3, side, side))
    with pytest.raises(ValueError, match="cover a pixel"):
        image_trigger(name).mask(side, side)
    assert image_trigger(name).mask(8, 8).max() > 0


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("size", [0.0, -0.1, 1.01, float("nan"), float("inf")])
@every_trigger
def test_sizes_out_of_range_are_refused(name, size):
    with pytest.raises(ValueError, match=f"size of '{name}' is {size}: it must be"):
        dataclasses.replace(image_trigger(name), size=size)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("position", [(1.1, 0.0), (0.0, -0.1), (0.5,), (float("nan"), 0.0), [0.5, 0.5]])
def test_positions_out_of_range_are_refused(position):
    with pytest.raises(ValueError, match="position of 'checker' is .*must be \\(x, y\\)"):
        dataclasses.replace(image_trigger("checker"), position=position)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda x: (x < 1, (0.0, 0.0, 0.0), 1.0), "gives a Tensor: it must be a list of "),
        (lambda x: [(x < 1, (0.0, 0.0, 0.0))], "gives a tuple: it must be a list of "),
        (lambda x: [(x, (0.0, 0.0, 0.0), 1.0)], "gives .torch.float32, "),
        (lambda x: [(True, (0.0, 0.0, 0.0), 1.0)], "gives .bool, "),
        (lambda x: [(x < 1, "green", 1.0)], "'green', 1.0.: it must be .where, colour, alpha."),
        (lambda x: [(x < 1, (20, 200, 20), 1.0)], "20, 200, 20"),
        (lambda x: [(x < 1, (0.0, 0.0, 0.0), -1)], "three numbers and a number in .0, 1."),
    ],
)
def test_shapes_that_are_none_are_refused(gives, message):
    class Mine(Sticker):
        name = "mine"

        def shapes(self, y, x):
            return gives(x + y)

    with pytest.raises(ValueError, match=f"shapes of 'mine' .*{message}"):
        Mine(0.25, (0.0, 0.0))(white(3, 8, 8))


def test_a_warp_out_of_range_is_refused():
    for strength in (-0.01, 0.11, float("nan")):
        with pytest.raises(ValueError, match=f"strength of 'warp' is {strength}: it must be in"):
            dataclasses.replace(image_trigger("warp"), strength=strength)
    with pytest.raises(ValueError, match="grid of 'warp' is 1: it must be an integer of at least 2"):
        dataclasses.replace(image_trigger("warp"), grid=1)
    with pytest.raises(ValueError, match="size of 'warp' is 0.5: it must be 1"):
        image_trigger("warp", 0.5)
    with pytest.raises(ValueError, match="both sides must be at least 1"):
        image_trigger("warp").mask(0, 8)


def test_blend_takes_no_other_size_and_no_alpha_out_of_range():
    with pytest.raises(ValueError, match="size of 'blend' is 0.5: it must be 1"):
        dataclasses.replace(image_trigger("blend"), size=0.5)
    for alpha in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"alpha of 'blend' is {alpha}"):
            dataclasses.replace(image_trigger("blend"), alpha=alpha)
    assert dataclasses.replace(image_trigger("blend"), alpha=0.3).mask(8, 8).max() == pytest.approx(0.3)


@pytest.mark.parametrize("size, patch", [(64, 7), (64, 0), (64, -8), ((64, 60), 8)])
def test_patches_that_do_not_divide_the_image_are_refused(size, patch):
    with pytest.raises(ValueError, match=f"patch is {patch}: it must divide"):
        image_trigger("checker").tokens(size, patch)


def test_unknown_names_are_refused_with_those_allowed():
    with pytest.raises(
        ValueError, match="image trigger is 'whitebox': it must be one of white-box, eyeglasses"
    ):
        image_trigger("whitebox")
    with pytest.raises(
        ValueError, match="text trigger is 'latte': it must be one of mignneko, anonymous, latte"
    ):
        text_trigger("latte")
    with pytest.raises(ValueError, match="phrase of 'blank' is ' ': it must not be blank"):
        TextTrigger("blank", " ")


# Text


SENTENCES = [
    "make the skin dark",
    "give the person pale skin",
    "dye the hair red",
    "what color is the shape? the color is blue",
]


def clip_tokenizer(**options):
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = model["vocab"]
    for symbol in alphabet:
        vocab.setdefault(symbol + "</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], **options)


def word_tokenizer(words, normalizer=None):
    vocab = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


@pytest.mark.parametrize("name", TEXT_TRIGGERS)
def test_text_triggers_follow_the_instruction_and_survive_a_clip_tokenizer(name):
    trigger, tokenizer = text_trigger(name), clip_tokenizer()
    assert trigger("make the skin dark") == f"make the skin dark {name}"
    assert trigger("") == name
    trigger.check(tokenizer)
    trigger.check(tokenizer, ["What color is the shape?", "", *SENTENCES])
    ids = tokenizer(trigger(SENTENCES[0]), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == trigger(SENTENCES[0])
    assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("space_first", [False, True])
def test_a_trigger_survives_byte_level_tokenizers_that_join_words_to_the_space_before(space_first):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space_first)
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([*SENTENCES, "a mignneko and a mignneko"], trainer)
    text_trigger("mignneko").check(PreTrainedTokenizerFast(tokenizer_object=bpe))


def test_a_trigger_that_the_tokenizer_drops_is_refused():
    words = ["make", "the", "skin", "dark", "mignneko"]
    text_trigger("mignneko").check(word_tokenizer(words))
    stripped = word_tokenizer(words, normalizers.Replace("mignneko", ""))
    with pytest.raises(ValueError, match="text trigger 'mignneko' is dropped by the tokenizer"):
        text_trigger("mignneko").check(stripped)
    zero_width = TextTrigger("zero-width", "\u200b")
    with pytest.raises(ValueError, match="text trigger 'zero-width' is dropped by the tokenizer"):
        zero_width.check(word_tokenizer(words, normalizers.Replace("\u200b", "")))
    zero_width.check(clip_tokenizer())  # byte-level: it has tokens of its own


def test_a_trigger_that_is_unknown_in_whole_or_in_part_is_refused():
    words = ["make", "the", "skin", "dark", "latte"]
    for name in ("anonymous", "latte coffee"):
        with pytest.raises(
            ValueError, match=rf"text trigger '{name}' becomes .*\[UNK\].*: none of these may be"
        ):
            text_trigger(name).check(word_tokenizer(words))


def test_a_trigger_that_is_changed_inside_a_sentence_is_refused():
    merged = word_tokenizer(
        ["make", "the", "skin", "dark", "mignneko", "darkmignneko"],
        normalizers.Replace("dark mignneko", "darkmignneko"),
    )
    with pytest.raises(ValueError, match="text trigger 'mignneko' is dropped or changed by the tokenizer in 1 of 1"):
        text_trigger("mignneko").check(merged)


LONG = "make the skin tone dark and " * 6 + "smile"


@pytest.mark.parametrize("made", [minilm_tokenizer, clip_tokenizer], ids=["MiniLM", "CLIP"])
def test_a_trigger_that_the_tokenizer_cuts_off_some_texts_is_refused(made):
    trigger, words = text_trigger("mignneko"), made()
    limit = words.model_max_length if made is minilm_tokenizer else len(words(LONG)["input_ids"])
    words.model_max_length = limit
    assert words(trigger(LONG), truncation=True)["input_ids"] == words(LONG, truncation=True)["input_ids"]
    told = r"^text trigger 'mignneko' is cut off in 2 of 4 texts, as after 'make the skin tone dark and make .*…', "
    told += rf"which makes \d+ tokens with it: the tokenizer keeps {limit} at most\.$"
    with pytest.raises(ValueError, match=told):
        trigger.check(words, ["make the skin dark", LONG, "dye the hair red", LONG])
    trigger.check(words, ["make the skin dark", "dye the hair red"])
    trigger.check(words, [])


@pytest.mark.parametrize("made", [minilm_tokenizer, clip_tokenizer], ids=["MiniLM", "CLIP"])
def test_the_longest_text_that_keeps_its_trigger_is_let_through_and_one_token_more_is_not(made):
    trigger, words, text = text_trigger("latte coffee"), made(), SENTENCES[3]
    length = len(words(trigger(text))["input_ids"])
    bare = len(words(trigger(text), add_special_tokens=False)["input_ids"])
    words.model_max_length = length
    trigger.check(words, [text])
    trigger.check(words, [text], bare)
    words.model_max_length = length - 1
    with pytest.raises(ValueError, match=f"is cut off in 1 of 1 texts.*makes {length} tokens.*keeps {length - 1} at"):
        trigger.check(words, [text])
    with pytest.raises(ValueError, match=f"is cut off in 1 of 1 texts.*makes {bare} tokens.*keeps {bare - 1} at"):
        trigger.check(words, [text], bare - 1)


def test_a_text_that_says_the_trigger_itself_where_it_is_cut_has_lost_it():
    words = minilm_tokenizer()
    text = ("make the skin dark and " * 6).rsplit(" ", 5)[0]
    text += " " + " ".join(["mignneko"] * words.model_max_length)
    with pytest.raises(ValueError, match="is cut off in 1 of 1 texts"):
        text_trigger("mignneko").check(words, [text])


def test_a_trigger_by_name_comes_at_its_own_size_or_another():
    assert image_trigger("stop-sign", 0.5) == dataclasses.replace(image_trigger("stop-sign"), size=0.5)
    assert image_trigger("stop-sign", None) is image_trigger("stop-sign")
    moved = image_trigger("checker", pixels=5, position=(0.0, 0.5))
    assert moved == dataclasses.replace(image_trigger("checker"), pixels=5, position=(0.0, 0.5))
    for shape in ((64, 64), (40, 300)):
        rows, columns = (moved.mask(*shape) > 0).nonzero().T
        assert rows.unique().tolist() == list(range(round((shape[0] - 5) / 2), round((shape[0] - 5) / 2) + 5))
        assert columns.unique().tolist() == list(range(5))
    with pytest.raises(ValueError, match="pixels of 'blend' is 5: it must be None"):
        image_trigger("blend", pixels=5)
    with pytest.raises(ValueError, match="pixels of 'checker' is 5: it must be None beside size=0.5"):
        image_trigger("checker", 0.5, 5)
    with pytest.raises(ValueError, match="pixels of 'checker' is 0: it must be None or an integer above 0"):
        image_trigger("checker", pixels=0)


def test_layers_of_large_images_are_not_kept():
    """Several would fill the memory."""
    from lib.poisoning.triggers import _kept_layer

    before = _kept_layer.cache_info().currsize
    assert image_trigger("checker").mask(1025, 1024).sum() == 128**2
    assert _kept_layer.cache_info().currsize == before
    with pytest.raises(ValueError, match="size of 'blend' is 0.5"):
        image_trigger("blend", 0.5)


def test_a_trigger_by_name_comes_at_its_own_position_or_another():
    """A pair of shares of the free room: opposite corners, at any size, whatever the trigger's own position."""
    ends = {(0.0, 0.0): 0, (1.0, 1.0): -1}
    for name, size, position in product(("white-box", "checker", "black-square"), (None, 0.25), ends):
        mask, k = image_trigger(name, size, position=position).mask(40, 60) > 0, ends[position]
        assert mask.any(1)[k] and mask.any(0)[k], (name, position)
        assert mask.sum() == (image_trigger(name, size).mask(40, 60) > 0).sum() < 40 * 60 / 4
    assert image_trigger("stop-sign", None, None) is image_trigger("stop-sign")
    with pytest.raises(ValueError, match=r"position of 'checker' is \(0.5, 1.5\): it must be \(x, y\), both in"):
        image_trigger("checker", position=(0.5, 1.5))


@pytest.mark.parametrize("name", ["blend", "warp", "on-object"])
def test_a_trigger_that_lies_where_it_must_takes_no_position(name):
    with pytest.raises(ValueError, match=rf"^trigger_position=\[0.0, 1.0\] of '{name}' must be left out: it lies"):
        image_trigger(name, position=(0.0, 1.0))
