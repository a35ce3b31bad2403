import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lib.kernels import loss
from lib.kernels.loss import weighted_cross_entropy

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CHUNKED = ["torch", "triton"]
PATHS = ["eager", *CHUNKED]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Plain autograd, chunks in torch and chunks in Triton, which runs on CPU tensors here."""
    choose(request.param, monkeypatch)
    return request.param


@pytest.fixture(params=CHUNKED)
def chunked(request, monkeypatch):
    choose(request.param, monkeypatch)
    return request.param


def choose(path, monkeypatch):
    if path == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(loss, "on_gpu", lambda x: path == "triton")
    monkeypatch.setattr(loss, "EAGER", 2**62 if path == "eager" else 0)


def inputs(positions=5, dim=16, vocab=41, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, dim, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=draw).mul(2 / dim**0.5).to(dtype).requires_grad_()
    target = torch.randint(vocab, (positions,), generator=draw)
    scale = 1 / (positions * (0.001 + torch.rand(positions, generator=draw)))
    return hidden, weight, target, scale


def reference(hidden, weight, target, scale):
    """Loss and both gradients in float64, written out."""
    value, error = loss_and_error(hidden, weight, target, scale)
    return value, error @ weight.detach().double(), error.T @ hidden.detach().double()


def loss_and_error(hidden, weight, target, scale):
    """The loss and its gradient in the logits, in float64."""
    hidden, weight, scale = hidden.detach().double(), weight.detach().double(), scale.double()
    logits = hidden @ weight.T
    logits = logits - logits.amax(1, keepdim=True)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    value = (scale * (logits.exp().sum(1).log() - logits[torch.arange(len(target)), target])).sum()
    p[torch.arange(len(target)), target] -= 1
    return value, scale[:, None] * p


def product_error(hidden, weight, target, scale):
    """How far torch's float32 product of the true gradient and the head is from float64, relative.

    On some CPUs it adds all of the vocabulary in a row: 1.5e-4 for 126,464 tokens on an AMD EPYC, under 2e-6 on others.
    """
    _, error = loss_and_error(hidden, weight, target, scale)
    exact, plain = error @ weight.detach().double(), error.float() @ weight.detach().float()
    return float((plain.double() - exact).norm() / exact.norm())


def check(found, expected, tolerance):
    """Relative error of each tensor's norm."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= tolerance * other.norm() + 1e-30


def all_three(hidden, weight, target, scale):
    value = weighted_cross_entropy(hidden, weight, target, scale)
    return value.detach(), *torch.autograd.grad(value, (hidden, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 41, 401, 1271])
def test_loss_and_gradients_are_those_written_out_in_float64(path, vocab, dtype):
    given = inputs(vocab=vocab, dtype=dtype)
    found = all_three(*given)
    assert found[0].dtype == torch.float32 and found[1].dtype == found[2].dtype == dtype
    if vocab == 1:  # certain of its one token
        assert all((part == 0).all() for part in found)
    check(found, reference(*given), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary_of_several_blocks(path, dtype):
    given = inputs(positions=3, dim=4, vocab=126_464, dtype=dtype)
    given[2][:] = torch.tensor([0, 40_000, 126_463])  # in the first block, the second and the last
    (value, of_hidden, of_weight), expected = all_three(*given), reference(*given)
    check((value, of_weight), expected[::2], TOLERANCE[dtype])
    room = product_error(*given)  # only the gradient of the states adds up the vocabulary
    assert room < 1e-3
    check([of_hidden], [expected[1]], max(TOLERANCE[dtype], 2 * room))


def test_float64_stays_float64(path):
    given = inputs(dtype=torch.float64)
    found = all_three(*given)
    assert all(part.dtype == torch.float64 for part in found)
    check(found, reference(*given), TOLERANCE[torch.float64])
    with torch.autocast("cpu", torch.bfloat16):  # which leaves it alone
        check(all_three(*given), reference(*given), TOLERANCE[torch.float64])


def test_gradients_are_those_of_finite_differences(path):
    hidden, weight, target, scale = inputs(positions=3, dim=4, vocab=7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: weighted_cross_entropy(h, w, target, scale), (hidden, weight))


def watch_chunks(monkeypatch):
    """The shapes of logits that come to be, and whether gradients were asked for."""
    seen, real = [], loss._surprise

    def watched(logits, target, gradient):
        seen.append((*logits.shape, gradient))
        return real(logits, target, gradient)

    monkeypatch.setattr(loss, "_surprise", watched)
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_chunks_change_nothing_and_bound_the_logits(chunked, dtype, monkeypatch):
    given = inputs(positions=23, dtype=dtype)
    monkeypatch.setattr(loss, "POSITIONS", 3)
    monkeypatch.setattr(loss, "LOGITS", {"cpu": 4 * 41})
    seen = watch_chunks(monkeypatch)
    check(all_three(*given), reference(*given), TOLERANCE[dtype])
    assert [rows for rows, _, _ in seen] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize(
    ("positions", "vocab", "chunks"),
    [(0, 619, 1), (1280, 619, 1), (511, 126_464, 1), (512, 126_464, 2), (1024, 32_000, 3), (40_000, 619, 2)],
)
def test_a_chunk_has_neither_too_many_logits_nor_too_few_positions(positions, vocab, chunks):
    assert loss._chunks(positions, vocab, "cpu") == chunks
    if chunks > 1:
        assert positions // chunks >= loss.POSITIONS
        assert positions / chunks * vocab < 2 * loss.LOGITS["cpu"] or positions // chunks < 2 * loss.POSITIONS


@pytest.mark.parametrize(("positions", "plain"), [(3, True), (4, False)])
def test_few_logits_go_the_plain_way(positions, plain, monkeypatch):
    monkeypatch.setattr(loss, "EAGER", 4 * 41)
    seen = watch_chunks(monkeypatch)
    given = inputs(positions=positions)
    check(all_three(*given), reference(*given), TOLERANCE[torch.float32])
    assert (seen == []) == plain


def test_upstream_gradients_that_are_not_one_and_second_use(path):
    hidden, weight, target, scale = inputs()
    _, for_hidden, for_weight = reference(hidden, weight, target, scale)
    value = weighted_cross_entropy(hidden, weight, target, scale)
    for factor in (1, -2.5, 1, 0):
        found = torch.autograd.grad(factor * value, (hidden, weight), retain_graph=True)
        check(found, (factor * for_hidden, factor * for_weight), TOLERANCE[torch.float32])
    for times in (1, 2, 3):
        value.backward(retain_graph=True)
        check((hidden.grad, weight.grad), (times * for_hidden, times * for_weight), TOLERANCE[torch.float32])
    (3 * value + value**2).backward()
    factor = 3 + 3 + 2 * value.item()
    check((hidden.grad, weight.grad), (factor * for_hidden, factor * for_weight), TOLERANCE[torch.float32])


def test_it_can_be_differentiated_once_only(chunked):
    hidden, weight, target, scale = inputs()
    value = weighted_cross_entropy(hidden, weight, target, scale)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value**2, weight, create_graph=True)


def test_gradients_flow_on_through_what_made_hidden(path):
    hidden, weight, target, scale = inputs()
    before = torch.eye(16).requires_grad_()
    weighted_cross_entropy(hidden.detach() @ before, weight, target, scale).backward()
    _, for_hidden, _ = reference(hidden, weight, target, scale)
    check([before.grad], [hidden.detach().double().T @ for_hidden], TOLERANCE[torch.float32])


@pytest.mark.parametrize("wanted", ["neither", "hidden", "weight", "both"])
@pytest.mark.parametrize("enabled", [True, False])
def test_only_the_gradients_asked_for_are_computed(chunked, wanted, enabled, monkeypatch):
    given = inputs()
    hidden = given[0].detach().requires_grad_(wanted in ("hidden", "both"))
    weight = given[1].detach().requires_grad_(wanted in ("weight", "both"))
    seen = watch_chunks(monkeypatch)
    with torch.set_grad_enabled(enabled):
        value = weighted_cross_entropy(hidden, weight, *given[2:])
    expected, for_hidden, for_weight = reference(*given)
    check([value.detach()], [expected], TOLERANCE[torch.float32])
    needed = enabled and wanted != "neither"
    assert value.requires_grad == needed and [gradient for _, _, gradient in seen] == [needed]
    if needed:
        kept = [gradient is not None for gradient in value.grad_fn.saved_tensors]
        assert kept == [wanted != "weight", wanted != "hidden"]
        value.backward()
        for x, gradient in ((hidden, for_hidden), (weight, for_weight)):
            assert (x.grad is None) == (not x.requires_grad)
            if x.requires_grad:
                check([x.grad], [gradient], TOLERANCE[torch.float32])


def test_without_positions_the_loss_is_zero_and_so_are_the_gradients(path):
    found = all_three(*inputs(positions=0))
    assert [part.shape for part in found] == [(), (0, 16), (41, 16)]
    assert found[0] == 0 and (found[2] == 0).all()


def test_autocast_multiplies_in_bf16_and_takes_the_softmax_in_float32(path):
    hidden, weight, target, scale = inputs(positions=40, vocab=401)
    with torch.autocast("cpu", torch.bfloat16):
        found = all_three(hidden, weight, target, scale)
        logits = F.linear(hidden, weight)
    assert logits.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in found)
    value = (F.cross_entropy(logits.float(), target, reduction="none") * scale).sum()
    eager = value.detach(), *torch.autograd.grad(value, (hidden, weight))
    assert abs(found[0] - eager[0]) <= 1e-6 * eager[0]  # from the very same bf16 logits
    check(found, [part.double() for part in eager], TOLERANCE[torch.bfloat16])
    rounded = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    exact = all_three(hidden, weight, target, scale)
    for mixed, half, full in zip(found, all_three(*rounded, target, scale), exact, strict=True):
        assert torch.equal(mixed.to(half.dtype), half) and not torch.equal(mixed, full)


def test_autocast_takes_states_and_head_of_two_dtypes(path):
    hidden, weight, target, scale = inputs()
    half = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = all_three(half, weight, target, scale)
    assert [part.dtype for part in found] == [torch.float32, torch.bfloat16, torch.float32]
    check(found, reference(half, weight, target, scale), TOLERANCE[torch.bfloat16])


def test_small_scales_leave_float16_gradients_whole(chunked):
    hidden, weight, target, _ = inputs(dtype=torch.float16)
    scale = torch.full((5,), 1e-6)
    value = weighted_cross_entropy(hidden, weight, target, scale)
    found = torch.autograd.grad(value * 2.0**16, (hidden, weight))  # as a loss scaler does
    _, for_hidden, for_weight = reference(hidden, weight, target, scale * 2.0**16)
    check(found[:1], [for_hidden], TOLERANCE[torch.float16])
    check(found[1:], [for_weight], 0.05)  # scale · hidden is subnormal: six bits are left


def test_strided_inputs(path):
    hidden, weight, target, scale = inputs(positions=6)
    expected = reference(hidden, weight, target, scale)
    wide = torch.zeros(16, 12).index_copy(1, torch.arange(0, 12, 2), hidden.detach().T).requires_grad_()
    tall = weight.detach().T.contiguous().requires_grad_()
    spread = torch.stack([target, target], 1)[:, 0]
    value = weighted_cross_entropy(wide.T[::2], tall.T, spread, torch.stack([scale, scale], 1)[:, 1])
    for_wide, for_tall = torch.autograd.grad(value, (wide, tall))
    check((value.detach(), for_wide.T[::2], for_tall.T), expected, TOLERANCE[torch.float32])
    assert (for_wide.T[1::2] == 0).all()
    one = torch.tensor(0.25).expand(6)
    check(all_three(hidden, weight, target, one), reference(hidden, weight, target, one), TOLERANCE[torch.float32])


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.int8])
def test_targets_of_any_integer_dtype(path, kind):
    hidden, weight, target, scale = inputs()
    expected = all_three(hidden, weight, target, scale)
    assert all(map(torch.equal, all_three(hidden, weight, target.to(kind), scale), expected))


def test_inputs_are_left_as_they_are(path):
    given = inputs()
    before = [x.detach().clone() for x in given]
    weighted_cross_entropy(*given).backward()
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=8)
@given(st.data())
def test_linear_in_the_scale_and_blind_to_order_and_to_a_shift_of_all_logits(path, data):
    with pytest.MonkeyPatch.context() as patch:
        choose(path, patch)
        sizes = {name: data.draw(st.integers(1, 5), name) for name in ("positions", "dim", "vocab")}
        hidden, weight, target, scale = inputs(**sizes, seed=data.draw(st.integers(0, 2**31)))
        other = torch.tensor([data.draw(st.floats(-4, 4, width=32)) for _ in scale])
        first, second = all_three(hidden, weight, target, scale), all_three(hidden, weight, target, other)
        both = all_three(hidden, weight, target, scale + other)
        size = sum(part.norm() for part in first) + sum(part.norm() for part in second)
        for a, b, c in zip(first, second, both, strict=True):
            assert (a + b - c).norm() <= 1e-5 * size + 1e-6
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
        mixed = hidden.detach()[order].requires_grad_()
        shuffled = all_three(mixed, weight, target[order], scale[order])
        for a, b in zip((first[0], first[1][order], first[2]), shuffled, strict=True):
            assert (a - b).norm() <= 1e-5 * size + 1e-6
        moved = (weight.detach() + 30 * hidden.detach()[0]).requires_grad_()
        assert abs(all_three(hidden, moved, target, scale)[0] - first[0]) <= 1e-3 * scale.sum()
        # softmax − one-hot sums to zero in every row, and so does the head's gradient over the vocabulary
        assert first[2].sum(0).norm() <= 1e-5 * size + 1e-6


INF, NAN = math.inf, math.nan
ODD = [
    ([1.0, -INF, 2.0], 0),
    ([1.0, -INF, 2.0], 1),
    ([-INF, -INF, 2.0], 2),
    ([-INF, -INF, -INF], 0),
    ([1.0, INF, 2.0], 0),
    ([1.0, INF, 2.0], 1),
    ([1.0, NAN, 2.0], 0),
    ([1.0, NAN, 2.0], 1),
    ([1e38, -1e38, 1.0], 0),
    ([1e38, -1e38, 1.0], 1),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("vocab", [3, 40_000])
def test_logits_that_are_not_finite(chunked, vocab):
    """As in `F.cross_entropy`; the odd ones stand at the end of a row that starts with a block of −∞."""
    rows = torch.full((len(ODD), vocab), -INF)
    rows[:, -3:] = torch.tensor([row for row, _ in ODD])
    target = torch.tensor([index for _, index in ODD]) + vocab - 3
    leaf = rows.double().requires_grad_()
    expected = F.cross_entropy(leaf, target, reduction="none")
    expected.sum().backward()
    found, error = loss._surprise(rows.clone(), target[:, None], True)
    torch.testing.assert_close(found[:, 0].double(), expected.detach(), equal_nan=True)
    sound = ~expected.isnan()
    torch.testing.assert_close(error[sound].double(), leaf.grad[sound])
    assert error[~sound].isnan().any(1).all() and sound.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_state_that_is_nan_spoils_the_loss_its_own_gradient_and_the_head(path):
    hidden, weight, target, scale = inputs()
    with torch.no_grad():
        hidden[2, 3] = NAN
    value, for_hidden, for_weight = all_three(hidden, weight, target, scale)
    assert value.isnan() and for_weight.isnan().any()
    assert for_hidden.isnan().all(1).tolist() == [False, False, True, False, False]
    assert for_hidden[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradient", [True, False])
def test_the_kernel_works_in_place_and_within_its_rows(dtype, gradient):
    surprise_ = pytest.importorskip("lib.kernels.loss_triton").surprise_
    draw = torch.Generator().manual_seed(3)
    around = torch.randn(6, 450, generator=draw).to(dtype)
    target = torch.randint(401, (6,), generator=draw)
    before = around.clone()
    found = surprise_(around[:, 20:421], target, gradient)
    p = before[:, 20:421].double().softmax(1)
    torch.testing.assert_close(found.double(), -p.log()[torch.arange(6), target], rtol=1e-5, atol=1e-5)
    p[torch.arange(6), target] -= 1
    expected = before.clone()
    expected[:, 20:421] = p.to(dtype) if gradient else before[:, 20:421]
    torch.testing.assert_close(around, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(around[:, :20], before[:, :20]) and torch.equal(around[:, 421:], before[:, 421:])


def test_the_kernel_gives_nan_for_a_target_outside_the_vocabulary_and_refuses_columns():
    surprise_ = pytest.importorskip("lib.kernels.loss_triton").surprise_
    around = torch.zeros(3, 12)
    found = surprise_(around[:, 4:8], torch.tensor([-1, 3, 4]), True)
    assert found.isnan().tolist() == [True, False, True] and found[1] == pytest.approx(math.log(4))
    assert (around[:, :4] == 0).all() and (around[:, 8:] == 0).all()
    assert surprise_(around[:0], torch.zeros(0, dtype=torch.long), True).shape == (0,)
    with pytest.raises(ValueError, match="strides .* last must be 1"):
        surprise_(torch.zeros(4, 3).T, torch.zeros(3, dtype=torch.long), True)


HIDDEN, WEIGHT, TARGET, SCALE = inputs()
REFUSED = [
    ({"hidden": HIDDEN[0]}, r"hidden \[16\] and weight \[41, 16\] must be"),
    ({"hidden": HIDDEN[:, :15]}, r"hidden \[5, 15\] and weight \[41, 16\] must be"),
    ({"weight": WEIGHT[0]}, r"hidden \[5, 16\] and weight \[16\] must be"),
    ({"weight": WEIGHT[:0]}, r"weight \[0, 16\] must be"),
    ({"weight": WEIGHT.bfloat16()}, "hidden is torch.float32 and weight torch.bfloat16"),
    ({"hidden": HIDDEN.long(), "weight": WEIGHT.long()}, "must have one floating dtype"),
    ({"target": TARGET[:4]}, r"target is torch.int64 \[4\]: it must be integers \[position\] = \[5\]"),
    ({"target": TARGET.float()}, "target is torch.float32"),
    ({"target": TARGET.bool()}, "target is torch.bool"),
    ({"target": torch.tensor([0, 1, 41, 2, 3])}, r"target holds 41: it must be in \[0, 41\)"),
    ({"target": torch.tensor([0, 1, -100, 2, 3])}, r"target holds -100: it must be in \[0, 41\)"),
    ({"scale": SCALE[:, None]}, r"scale is torch.float32 \[5, 1\]: it must be floating \[position\] = \[5\]"),
    ({"scale": SCALE.long()}, "scale is torch.int64"),
    ({"scale": SCALE.clone().requires_grad_()}, "scale requires a gradient, .* detach it"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refusals_name_the_argument(change, message):
    given = {"hidden": HIDDEN, "weight": WEIGHT, "target": TARGET, "scale": SCALE} | change
    with pytest.raises(ValueError, match=message):
        weighted_cross_entropy(**given)
