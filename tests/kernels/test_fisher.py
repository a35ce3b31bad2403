import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_paths import both_paths, draw

from lib.kernels import fisher as module
from lib.kernels.fisher import NOISES, add_squared_norm, fisher_probe, fisher_probes, signs
from lib.runtime.seeds import generator

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TILE = 4096  # the kernel's: from 4097 on the sums of tiles are merged
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy's, in the interpreter
path = both_paths(module)


def noise_behind(path, shape, seed, noise):
    """The noise [probe, row, vocab] that the path draws."""
    if path == "triton":
        from fisher_noise import noise_of

        return noise_of(shape, seed, noise)
    own = generator(seed, "fisher probes")
    return signs(shape, own) if noise == "sign" else torch.randn(shape, generator=own)


def probability(logits):
    """Float64, written out."""
    weight = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    return weight / weight.sum(-1, keepdim=True)


def reference(logits, noise):
    """Float64: every probe is (diag √p − p √pᵀ) ε."""
    p = probability(logits)
    root = p.sqrt()
    along = torch.einsum("rv,krv->kr", root, noise.double())
    return root * noise.double() - torch.einsum("kr,rv->krv", along, p)


class TestFormula:
    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("vocab", [1, 41, 401, 1271])
    def test_of_the_noise_drawn(self, path, vocab, dtype, noise):
        logits = draw(2, vocab, dtype=dtype)
        found = fisher_probes(logits, 3, 11, noise)
        assert found.dtype == torch.float32 and found.shape == (3, 2, vocab)
        expected = reference(logits, noise_behind(path, (3, 2, vocab), 11, noise))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("vocab", [TILE, TILE + 1, 126_464])
    def test_many_tiles(self, path, vocab, noise):
        logits = draw(1, vocab, dtype=torch.bfloat16)
        logits[0, -1] = 20  # the heaviest is in the last tile
        found = fisher_probes(logits, 2, 3, noise)
        expected = reference(logits, noise_behind(path, (2, 1, vocab), 3, noise))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)

    def test_more_signs_than_a_word_has(self, path):
        """The kernel takes 32 probes' signs from one random number."""
        logits = draw(2, 5)
        expected = reference(logits, noise_behind(path, (70, 2, 5), 0, "sign"))
        torch.testing.assert_close(fisher_probes(logits, 70, 0).double(), expected, rtol=1e-5, atol=1e-6)

    def test_float64_stays_float64(self):
        logits = draw(3, 41).double()
        found = fisher_probes(logits, 2, 0)
        expected = reference(logits, noise_behind("torch", (2, 3, 41), 0, "sign"))
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)

    def test_of_given_noise(self):
        p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
        rows = fisher_probe(p, torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(rows.T @ rows, torch.diag(p) - torch.outer(p, p))
        noise = draw(3, 2, 4).double()
        torch.testing.assert_close(fisher_probe(p.expand(2, 4), noise), noise @ rows)

    def test_large_logits(self, path):
        logits = draw(2, 41, spread=1e4)
        expected = reference(logits, noise_behind(path, (2, 2, 41), 0, "sign"))
        torch.testing.assert_close(fisher_probes(logits, 2, 0).double(), expected, rtol=1e-5, atol=1e-6)

    @given(st.integers(0, 3), st.integers(1, 70), st.integers(1, 4), st.integers(0, 2**63 - 1), st.sampled_from(NOISES))
    @settings(max_examples=20)
    def test_probes_sum_to_zero_and_ignore_a_shift(self, rows, vocab, probes, seed, noise):
        """F 1 = 0; and p, so the probe, is the same for all logits that differ by a constant."""
        logits = draw(rows, vocab, dtype=torch.float64, seed=seed % 1000)
        found = fisher_probes(logits, probes, seed, noise)
        assert found.shape == (probes, rows, vocab)
        torch.testing.assert_close(found.sum(-1), torch.zeros(probes, rows).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(fisher_probes(logits + 7, probes, seed, noise), found, rtol=0, atol=1e-12)


class TestNoise:
    @pytest.mark.parametrize("noise", NOISES)
    def test_covariance_is_the_fisher_matrix(self, path, noise):
        """Of 2 × 300 probes: every entry within 5 standard errors."""
        logits, probes = draw(2, 5, spread=1), 300
        found = fisher_probes(logits, probes, 1, noise).double()
        p = probability(logits)
        fisher = torch.diag_embed(p) - p[..., None] * p[..., None, :]
        products = found[..., None] * found[..., None, :]
        error = products.std(0) / probes**0.5 + 1e-12
        assert ((products.mean(0) - fisher).abs() <= 5 * error).all()
        assert (error < 0.05).all()  # so the line above can fail

    @pytest.mark.parametrize("noise", NOISES)
    def test_is_centred_scaled_and_without_memory(self, path, noise):
        drawn = noise_behind(path, (64, 32, 64), 5, noise).double()
        size = drawn.numel() ** 0.5
        assert abs(float(drawn.mean())) < 5 / size
        assert abs(float(drawn.square().mean()) - 1) < 5 * 2**0.5 / size
        for dimension in range(3):  # probes, rows and columns next to each other
            near = drawn.narrow(dimension, 0, drawn.shape[dimension] - 1)
            far = drawn.narrow(dimension, 1, drawn.shape[dimension] - 1)
            assert abs(float((near * far).mean())) < 5.5 / size
        if noise == "sign":
            assert set(drawn.flatten().tolist()) == {-1, 1}

    @pytest.mark.parametrize("noise", NOISES)
    def test_variance_of_the_squared_norm(self, noise):
        """2 ‖A‖², less 2 Σ A_kk² for signs, with A the products of Jᵀ along the directions √p_k (e_k − p)."""
        logits, probes = draw(1, 6, spread=1), 3000
        jacobian = draw(6, 2, seed=4).double()
        p = probability(logits)[0]
        directions = fisher_probe(p, torch.eye(6, dtype=torch.float64))
        between = directions @ jacobian @ jacobian.T @ directions.T
        expected = 2 * between.square().sum()
        if noise == "sign":
            expected -= 2 * between.diagonal().square().sum()
        squares = (fisher_probes(logits, probes, 2, noise)[:, 0].double() @ jacobian).square().sum(-1)
        assert float(squares.mean()) == pytest.approx(float(between.trace()), rel=0.1)
        assert float(squares.var()) == pytest.approx(float(expected), rel=0.25)

    def test_signs_vary_less(self):
        logits = draw(1, 6, spread=1)
        sign, normal = (fisher_probes(logits, 3000, 2, noise).square().sum(-1).var() for noise in ("sign", "normal"))
        assert sign < 0.8 * normal

    @pytest.mark.parametrize("noise", NOISES)
    def test_the_seed_alone_decides(self, path, noise):
        logits = draw(2, 41)
        state = torch.get_rng_state()
        first = fisher_probes(logits, 2, 2**62 + 5, noise)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(fisher_probes(logits, 2, 2**62 + 5, noise), first)
        for other in (2**62 + 6, 5):
            assert not torch.equal(fisher_probes(logits, 2, other, noise), first)
        assert not torch.equal(first[0], first[1])
        twice = fisher_probes(draw(1, 41).expand(2, 41), 1, 0, noise)[0]
        assert not torch.equal(twice[0], twice[1])  # rows have noise of their own


class TestPolicy:
    @pytest.mark.parametrize("vocab", [41, 2 * TILE])
    def test_minus_infinity_is_a_probability_of_zero(self, path, vocab):
        logits = draw(2, vocab)
        logits[:, 3:] = -math.inf  # in the second case a whole tile
        found = fisher_probes(logits, 2, 0)
        assert (found[..., 3:] == 0).all()
        noise = noise_behind(path, (2, 2, vocab), 0, "sign")
        torch.testing.assert_close(
            found[..., :3].double(), reference(logits[:, :3], noise[..., :3]), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("vocab", [41, 2 * TILE])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_rows_without_a_softmax_are_nan_and_alone(self, path, bad, vocab):
        logits = draw(3, vocab)
        logits[1, slice(None) if bad == -math.inf else 2] = bad
        found = fisher_probes(logits, 2, 0)
        assert found[:, 1].isnan().all() and found[:, [0, 2]].isfinite().all()

    def test_strides_batches_and_nothing(self, path):
        logits = draw(41, 3, 2)
        for view in (logits.permute(1, 2, 0), logits[::2].permute(1, 2, 0), logits[:, 0].T):
            expected = fisher_probes(view.contiguous(), 2, 0)
            assert torch.equal(fisher_probes(view, 2, 0), expected) and expected.shape == (2, *view.shape)
        assert fisher_probes(logits[:, 0, 0], 2, 0).shape == (2, 41)
        assert fisher_probes(draw(0, 3, 41), 2, 0).shape == (2, 0, 3, 41)

    def test_no_gradient_flows(self, path):
        logits = draw(2, 5).requires_grad_()
        assert not fisher_probes(logits, 1, 0).requires_grad


class TestSquaredNorm:
    @pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
    @pytest.mark.parametrize("dim", [1, 41, 401, 1271])
    def test_adds_the_sum_of_squares_in_place(self, path, dim, dtype):
        scores, gradient = draw(2, 11), draw(2, 11, dim, dtype=dtype, seed=1)
        expected = scores.double() + gradient.double().square().sum(-1)
        assert add_squared_norm(scores, gradient) is scores
        torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=1e-5)

    def test_strided_and_empty(self, path):
        scores, gradient = draw(5, 6, 2)[..., 0].T, draw(7, 6, 5, seed=1).permute(1, 2, 0)
        expected = scores.double() + gradient.double().square().sum(-1)
        untouched = scores._base[..., 1].clone()
        add_squared_norm(scores, gradient)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=1e-5)
        assert torch.equal(scores._base[..., 1], untouched)
        for shape in ((0, 3, 2), (3, 0, 2), (3, 2, 0)):
            before = draw(*shape[:2])
            assert torch.equal(add_squared_norm(before.clone(), draw(*shape)), before)

    def test_nan_and_infinity_stay_where_they_are(self, path):
        gradient = draw(1, 3, 4)
        gradient[0, 0, 1], gradient[0, 1, 1] = math.nan, -math.inf
        scores = add_squared_norm(draw(1, 3), gradient)
        assert scores[0, 0].isnan() and scores[0, 1] == math.inf and scores[0, 2].isfinite()


REFUSED = [
    ({"logits": torch.zeros(2, 3).long()}, "logits is torch.int64"),
    ({"logits": [0.0]}, "logits is list"),
    ({"logits": torch.zeros(())}, r"logits is torch.float32 \[\]"),
    ({"logits": torch.zeros(2, 0)}, r"logits is torch.float32 \[2, 0\]"),
    ({"probes": 0}, "probes is 0; allowed are the integers 1 to"),
    ({"probes": True}, "probes is True"),
    ({"probes": 1.0}, "probes is 1.0"),
    ({"seed": -1}, "seed is -1; allowed are the integers 0 to"),
    ({"seed": 2**63}, "seed is 9223372036854775808"),
    ({"noise": "uniform"}, "noise is 'uniform'; allowed are sign, normal"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refusals_of_probes(change, message):
    with pytest.raises(ValueError, match=message):
        fisher_probes(**{"logits": torch.zeros(2, 3), "probes": 1, "seed": 0} | change)


SCORES, GRADIENT = torch.zeros(2, 3), torch.zeros(2, 3, 4)
REFUSED_NORMS = [
    (SCORES, GRADIENT[0], r"gradient is torch.float32 \[3, 4\]; allowed is floating"),
    (SCORES, GRADIENT.long(), "gradient is torch.int64"),
    (SCORES, None, "gradient is NoneType"),
    (SCORES[:1], GRADIENT, r"scores is torch.float32 \[1, 3\]; allowed is torch.float32 \[2, 3\]"),
    (SCORES.double(), GRADIENT, "scores is torch.float64"),
    ([0.0], GRADIENT, "scores is list"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("scores", "gradient", "message"), REFUSED_NORMS)
def test_refusals_of_norms(scores, gradient, message):
    with pytest.raises(ValueError, match=message):
        add_squared_norm(scores, gradient)
