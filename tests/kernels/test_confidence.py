import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_paths import both_paths, draw
from torch.nn import functional as F

from lib.kernels import confidence as module
from lib.kernels.confidence import SCORES, confidence, token_probability

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TILE = 8192  # the kernel's: from 8193 on tiles are merged
ANY = "probability"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy's, in the interpreter
path = both_paths(module)


def reference(logits, score, forbidden=None):
    """Token and sureness from all probabilities in float64, written out; the lowest index on ties."""
    logits = logits.double().clone()
    if forbidden is not None:
        logits[..., forbidden : forbidden + 1] = -math.inf
    p = (logits - logits.amax(-1, keepdim=True)).exp()
    p = p / p.sum(-1, keepdim=True)
    token = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    ranked = F.pad(p.sort(-1, descending=True).values, (0, 1))
    sureness = {
        "probability": ranked[..., 0],
        "margin": ranked[..., 0] - ranked[..., 1],
        "entropy": torch.where(p > 0, p * p.log(), 0).sum(-1),
    }
    return token, sureness[score]


def check(found, expected, path):
    token, sureness = found
    assert token.dtype == torch.int64 and torch.equal(token, expected[0])
    check_sureness(sureness, expected[1], path)


def check_sureness(found, expected, path):
    """Torch: to float64 rounding. Triton: float32."""
    assert found.dtype == (torch.float64 if path == "torch" else torch.float32)
    tolerance = 1e-14 if path == "torch" else 2e-6
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 41, 401, 1271])
@pytest.mark.parametrize("score", SCORES)
def test_it_is_what_a_float64_softmax_gives(path, score, vocab, dtype):
    logits = draw(2, 2, vocab, dtype=dtype)
    forbidden = int(logits[0, 0].argmax()) if vocab > 1 else None
    check(confidence(logits, score), reference(logits, score), path)
    check(confidence(logits, score, forbidden), reference(logits, score, forbidden), path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_vocabulary(path, dtype):
    logits = draw(2, 126_464, dtype=dtype)
    logits[1, -1] = logits[1].amax() + 4  # the surest in the last tile
    for score in SCORES:
        check(confidence(logits[1:], score), reference(logits[1:], score), path)
    check(confidence(logits, "margin", 126_463), reference(logits, "margin", 126_463), path)


def test_float64_logits_stay_float64(path):
    logits = draw(3, 41, dtype=torch.float64)
    logits[:, 7], logits[:, 5] = 20 + 1e-9, 20  # one and the same in float32
    for score in SCORES:
        check(confidence(logits, score), reference(logits, score), "torch")


@pytest.mark.parametrize("vocab", [41, 2 * TILE + 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_given_token(path, vocab, dtype):
    logits = draw(3, vocab, dtype=dtype)
    token = torch.tensor([0, vocab - 1, 5])
    p = logits.double().softmax(-1)
    check_sureness(token_probability(logits, token), p.gather(-1, token[:, None])[:, 0], path)
    check_sureness(token_probability(logits, logits.argmax(-1)), confidence(logits)[1].double(), path)

    allowed = logits.double().index_fill(-1, torch.tensor([5]), -math.inf).softmax(-1)
    expected = torch.stack([allowed[0, 0], allowed[1, -1], torch.tensor(0.0, dtype=torch.float64)])
    check_sureness(token_probability(logits, token, forbidden=5), expected, path)
    check_sureness(token_probability(logits[:1], torch.tensor([3]).int(), forbidden=vocab), p[:1, 3], path)


def test_a_given_token_for_each_of_a_batch(path):
    logits = draw(2, 2, 9)
    token = torch.tensor([[1, 2], [3, 8]])
    expected = logits.double().softmax(-1).gather(-1, token[..., None])[..., 0]
    check_sureness(token_probability(logits, token), expected, path)


@pytest.mark.parametrize("places", [[3, 17, 40], [9000, 9001, 16_388]])
def test_ties_take_the_lowest_index(path, places):
    logits = draw(1, max(places) + 1)
    logits[:, places] = 15
    for k, forbidden in enumerate([None, *places[:2]]):
        check(confidence(logits, "margin", forbidden), reference(logits, "margin", forbidden), path)
        logits[:, places[:k]] = 15
        assert confidence(logits, ANY, forbidden)[0] == (places[1] if forbidden == places[0] else places[0])
    assert confidence(logits, "margin")[1] == 0


@pytest.mark.parametrize("where", [0, 40, 8000, TILE])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_make_their_row_nan(path, value, where):
    logits = draw(2, TILE + 1)
    expected = confidence(logits[1:])[1]
    logits[0, where] = value
    for score in SCORES:
        token, sureness = confidence(logits, score)
        assert sureness.isnan().tolist() == [True, False] and 0 <= token[0] <= TILE
    assert confidence(logits)[1][1] == expected[0]
    assert token_probability(logits, torch.tensor([5, 5])).isnan().tolist() == [True, False]
    at_forbidden = confidence(logits, ANY, forbidden=where)[1][0]
    assert bool(at_forbidden.isnan()) == math.isnan(value)


def test_nothing_but_nan_is_nan(path):
    token, sureness = confidence(torch.full((1, 41), math.nan), "margin")
    assert sureness.isnan() and 0 <= token < 41


@pytest.mark.parametrize("vocab", [1, 41, TILE + 5])
def test_nothing_but_minus_infinity_is_nan(path, vocab):
    logits = torch.full((1, vocab), -math.inf)
    logits[:, vocab // 2] = 1
    forbidden = vocab // 2
    for score in SCORES:
        token, sureness = confidence(logits, score, forbidden)
        assert sureness.isnan() and 0 <= token < vocab
    assert token_probability(logits, torch.tensor([0]), forbidden).isnan()


@pytest.mark.parametrize("vocab", [2, 41, 2 * TILE + 5])
def test_single_minus_infinities_are_impossible_tokens(path, vocab):
    logits = torch.full((1, vocab), -math.inf)
    logits[:, -1] = 1  # in the last tile, behind tiles of nothing
    for score, sureness in (("probability", 1), ("margin", 1), ("entropy", 0)):
        assert [part.item() for part in confidence(logits, score)] == [vocab - 1, sureness]
    logits[:, 0] = 0.5
    for score in SCORES:
        check(confidence(logits, score), reference(logits, score), path)
    assert token_probability(logits, torch.tensor([vocab // 2])) == (0 if vocab > 2 else confidence(logits)[1])


def test_one_token_left_has_a_margin_of_one(path):
    assert confidence(draw(1, 1), "margin")[1] == 1
    assert confidence(draw(1, 2), "margin", forbidden=0)[1] == 1


def test_logits_of_any_size_neither_overflow_nor_underflow(path):
    logits = torch.tensor([[3e38, 3e38, -3e38], [-3e38, -3.1e38, -3.2e38], [1e4, 1e4 - 1, -1e4]])
    for score in SCORES:
        check(confidence(logits, score), reference(logits, score), path)


def test_strides_do_not_matter_and_nothing_is_written(path):
    table = draw(41, 4, 6)  # vocabulary first
    views = [table.movedim(0, -1)[:, ::2], table.movedim(0, -1)[1:, 1:3], draw(1, 41).expand(3, 41), draw(41)]
    for logits in views:
        before = logits.clone()
        check(confidence(logits, ANY, 3), reference(logits, ANY, 3), path)
        assert torch.equal(logits, before)


@pytest.mark.parametrize("vocab", [5, 2 * TILE])
def test_empty_batches(path, vocab):
    for shape in ((0,), (0, 3), (2, 0)):
        for score in SCORES:
            token, sureness = confidence(draw(*shape, vocab), score)
            assert token.shape == sureness.shape == shape and token.dtype == torch.int64
        assert token_probability(draw(*shape, vocab), torch.zeros(shape, dtype=torch.int64)).shape == shape


def test_a_single_position_has_no_batch(path):
    logits = draw(9)
    assert confidence(logits)[0].shape == ()
    check_sureness(token_probability(logits, torch.tensor(4)), logits.double().softmax(-1)[4], path)


@pytest.mark.parametrize(("rows", "vocab", "piece"), [(301, 619, 2**16), (3, 100_003, 2**18), (3, 126_464, 2**16)])
@pytest.mark.parametrize("threads", [1, 2])
def test_equal_rows_stay_equal_to_the_bit(rows, vocab, piece, threads, monkeypatch):
    """In whatever piece and by whatever thread they are counted: decoding breaks true ties by position."""
    monkeypatch.setattr(module, "PIECE", piece)
    torch.set_num_threads(threads)
    try:
        for seed, score in enumerate(SCORES):
            logits = draw(1, vocab, seed=seed).repeat(rows, 1)
            assert len(confidence(logits, score)[1].unique()) == 1
    finally:
        torch.set_num_threads(1)


ROWS = st.lists(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-1e3, 1e3, width=32)), min_size=7, max_size=7), min_size=1
)


@given(rows=ROWS, dtype=st.sampled_from(DTYPES), forbidden=st.sampled_from([None, 0, 6, 7]), data=st.data())
def test_properties(rows, dtype, forbidden, data):
    logits = torch.tensor(rows).to(dtype)
    logits[:, 3] = 1  # at least one token is possible
    found = {score: confidence(logits, score, forbidden) for score in SCORES}
    token, p = found["probability"]
    assert all(torch.equal(token, other) for other, _ in found.values())
    assert forbidden not in token.tolist() and ((p >= 1 / 7 - 1e-15) & (p <= 1)).all()
    assert ((found["margin"][1] >= 0) & (found["margin"][1] <= p)).all()
    assert ((-math.log(7) - 1e-14 <= found["entropy"][1]) & (found["entropy"][1] <= 0)).all()

    every = [token_probability(logits, torch.full((len(rows),), k), forbidden) for k in range(7)]
    torch.testing.assert_close(sum(every), torch.ones(len(rows), dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.equal(torch.stack(every).amax(0), p)

    at = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    for score, (token, sureness) in found.items():
        some = confidence(logits[at], score, forbidden)
        assert torch.equal(some[0], token[at]) and torch.equal(some[1], sureness[at])


@given(row=st.lists(st.integers(-40, 40), min_size=2, max_size=9), shift=st.integers(-500, 500), data=st.data())
def test_a_shift_of_all_logits_changes_nothing_and_an_order_only_the_index(row, shift, data):
    order = data.draw(st.permutations(range(len(row))))
    logits = torch.tensor([row]).double()
    for score in SCORES:
        token, sureness = confidence(logits, score)
        moved = confidence(logits + shift, score)
        assert torch.equal(moved[0], token) and torch.equal(moved[1], sureness)
        other, shuffled = confidence(logits[:, order], score)
        assert row[order[other]] == row[token]
        torch.testing.assert_close(shuffled, sureness, rtol=1e-14, atol=1e-15)


def test_no_gradient_flows(path):
    logits = draw(1, 9).requires_grad_()
    assert not confidence(logits)[1].requires_grad
    assert not token_probability(logits, torch.tensor([1])).requires_grad


LOGITS = torch.zeros(2, 3, 5)
REFUSED = [
    (confidence, {"logits": LOGITS.long()}, r"logits is torch.int64 \[2, 3, 5\]; allowed is floating \[\*batch, vocab"),
    (confidence, {"logits": torch.tensor(0.0)}, r"logits is torch.float32 \[\]"),
    (confidence, {"logits": LOGITS[..., :0]}, r"logits is .* with vocab at least 1"),
    (confidence, {"logits": None}, "logits is NoneType"),
    (confidence, {"score": "given"}, "score is 'given'; allowed are probability, margin, entropy"),
    (confidence, {"forbidden": -1}, "forbidden is -1; allowed are integers from 0"),
    (confidence, {"forbidden": True}, "forbidden is True"),
    (confidence, {"forbidden": 1.0}, "forbidden is 1.0"),
    (token_probability, {"forbidden": -1}, "forbidden is -1"),
    (token_probability, {"token": torch.zeros(2, 3)}, "token is torch.float32 .* allowed are int64 and int32 of shape"),
    (token_probability, {"token": torch.zeros(6).long()}, r"token is torch.int64 \[6\]; .* of shape \[2, 3\]"),
    (token_probability, {"token": torch.full((2, 3), 5)}, "token is 5 to 5; allowed are 0 to 4"),
    (token_probability, {"token": torch.full((2, 3), -1)}, "token is -1 to -1"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("function", "change", "message"), REFUSED)
def test_refusals_name_the_argument(function, change, message):
    given = {
        confidence: {"logits": LOGITS},
        token_probability: {"logits": LOGITS, "token": torch.zeros(2, 3).long()},
    }[function]
    function(**given)
    with pytest.raises(ValueError, match=message):
        function(**(given | change))
