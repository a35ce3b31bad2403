import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.kernels import bootstrap
from lib.kernels.bootstrap import resampled_means

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(params=["torch", "triton"])
def path(request, monkeypatch):
    """Both paths in turn: Triton's runs on CPU tensors here."""
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(bootstrap, "on_gpu", lambda x: request.param == "triton")
    return request.param


def normal(n, columns, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=draw, dtype=torch.float64).to(dtype)


def philox(counter, key):
    """Philox4x32-10 (Salmon et al., 2011) on arrays of counters [4, ...], in 64-bit integers."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in np.broadcast_arrays(*counter))
    low, word = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = np.uint64(key) & low, np.uint64(key) >> word
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> word) ^ c1 ^ k0, b & low, (a >> word) ^ c3 ^ k1, a & low
        k0, k1 = k0 + np.uint64(0x9E3779B9) & low, k1 + np.uint64(0xBB67AE85) & low
    return c0, c1, c2, c3


def drawn_rows(path, n, resamples, seed):
    """The index matrix [resamples, n] that the path never makes, from independent code."""
    if path == "torch":
        return np.random.default_rng(seed).integers(n, size=(resamples, n))
    words = philox((np.arange((n + 1) // 2), np.arange(resamples)[:, None], 0, 0), seed)
    rows = [
        [(int(a) << 32 | int(b)) * n >> 64, (int(c) << 32 | int(d)) * n >> 64]
        for a, b, c, d in zip(*(w.flat for w in words), strict=True)
    ]
    return np.array(rows).reshape(resamples, -1)[:, :n]


class TestDraws:
    def test_reference_is_philox(self):
        """The known answers of the authors' library, Random123."""
        full = 2**32 - 1
        assert [f"{int(w):x}" for w in philox((0, 0, 0, 0), 0)] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
        found = philox((full, full, full, full), 2**64 - 1)
        assert [f"{int(w):x}" for w in found] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]

    @pytest.mark.parametrize("n, columns", [(1, 1), (2, 3), (41, 1), (41, 11), (401, 7), (1271, 2)])
    @pytest.mark.parametrize("seed", [0, 2**40 + 7])
    def test_means_of_the_drawn_rows(self, path, n, columns, seed):
        """Equal to indexing with the whole matrix; 11 columns are two programs of the kernel."""
        samples, resamples = normal(n, columns), 13
        expected = samples.numpy()[drawn_rows(path, n, resamples, seed)].mean(1)
        found = resampled_means(samples, resamples, seed)
        assert found.shape == (resamples, columns) and found.dtype == torch.float64
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("n", [2, 3])
    def test_exact_distribution(self, path, n):
        """Against all nⁿ equally likely draws."""
        values, resamples = [0.0, 1.0, 10.0][:n], 3000
        expected = {}
        for drawn in itertools.product(values, repeat=n):
            expected[round(sum(drawn))] = expected.get(round(sum(drawn)), 0) + resamples / n**n
        samples = torch.tensor(values, dtype=torch.float64)[:, None]
        sums = (resampled_means(samples, resamples, 1)[:, 0] * n).round().long().tolist()
        assert set(sums) == set(expected)
        counts = [sums.count(value) for value in expected]
        assert scipy.stats.chisquare(counts, list(expected.values())).pvalue > 1e-3

    def test_each_row_as_often_and_independently(self, path):
        """Counts per row have the multinomial's mean, variance and covariance; no resample is another's copy."""
        n, resamples = 8, 2500
        counts = resampled_means(torch.eye(n, dtype=torch.float64), resamples, 3) * n
        assert torch.equal(counts, counts.round()) and (counts.sum(1) == n).all()
        covariance = torch.cov(counts.T) - (torch.eye(n, dtype=torch.float64) - 1 / n)
        assert (counts.mean(0) - 1).abs().max() < 5 / resamples**0.5
        assert covariance.abs().max() < 0.12
        deviation = counts - 1
        following = (deviation[1:] * deviation[:-1]).sum(1).mean()
        assert abs(float(following)) < 5 * n**0.5 / resamples**0.5

    def test_seeds(self, path):
        samples = normal(20, 2)
        state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        first, again, other = (resampled_means(samples, 30, seed) for seed in (5, 5, 6))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert not set(first[:, 0].tolist()) & set(other[:, 0].tolist())
        assert torch.equal(torch.get_rng_state(), state)
        assert (np.random.get_state()[1] == legacy).all()  # noqa: NPY002

    def test_more_resamples_keep_the_first_ones(self, path):
        samples = normal(9, 2)
        assert torch.equal(resampled_means(samples, 40, 0)[:17], resampled_means(samples, 17, 0))

    def test_columns_share_their_rows(self, path):
        """Gathered or counted, alone or with others, a column has the same resamples."""
        samples = normal(41, 10)
        together = resampled_means(samples, 20, 4)
        for column in (0, 9):
            alone = resampled_means(samples[:, column : column + 1], 20, 4)
            torch.testing.assert_close(alone, together[:, column : column + 1], rtol=0, atol=1e-14)


class TestOracle:
    @pytest.mark.parametrize("columns", [1, 4])
    def test_scipy(self, columns):
        """The percentile interval of scipy.stats.bootstrap, within the error of 20,000 resamples."""
        samples = normal(60, columns).exp()
        means = resampled_means(samples, 20_000, 0).numpy()
        oracle = scipy.stats.bootstrap(
            (samples.numpy(),),
            np.mean,
            confidence_level=0.9,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(1),
        )
        low, high = np.quantile(means, [0.05, 0.95], axis=0)
        width = high - low
        assert (np.abs(low - oracle.confidence_interval.low) < 0.03 * width).all()
        assert (np.abs(high - oracle.confidence_interval.high) < 0.03 * width).all()
        for column in range(columns):
            theirs = oracle.bootstrap_distribution.reshape(columns, -1)[column]
            assert scipy.stats.ks_2samp(means[:, column], theirs).pvalue > 1e-3

    def test_standard_error(self, path):
        """Var of the means is the samples' variance over n."""
        samples = normal(25, 1)
        found = resampled_means(samples, 2000, 2)
        assert abs(float(found.mean() - samples.mean())) < 5 * float(samples.std()) / (25 * 2000) ** 0.5
        assert float(found.var() * 25 / samples.var(unbiased=False)) == pytest.approx(1, abs=0.16)


class TestInputs:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes(self, path, dtype):
        """Sums run in float64 of the values as given."""
        samples = (1000 + normal(41, 3)).to(dtype)
        assert torch.equal(resampled_means(samples, 10, 0), resampled_means(samples.double(), 10, 0))

    def test_strided_and_untouched(self, path):
        samples = normal(14, 10)
        before = samples.clone()
        found = resampled_means(samples[::2, 1::2], 10, 0)
        assert torch.equal(found, resampled_means(samples[::2, 1::2].contiguous(), 10, 0))
        assert torch.equal(samples, before)

    def test_no_columns_and_one_row(self, path):
        assert resampled_means(torch.zeros(5, 0), 3, 0).shape == (3, 0)
        assert resampled_means(torch.tensor([[0.1, 7.0]]), 3, 0).tolist() == [torch.tensor([0.1, 7.0]).tolist()] * 3

    def test_gradients_are_not_followed(self, path):
        assert not resampled_means(normal(5, 1).requires_grad_(), 3, 0).requires_grad

    @pytest.mark.parametrize("columns", [1, 7])
    @pytest.mark.parametrize("chunk", [1, 100, 2**20])
    def test_chunks_bound_the_draws_and_do_not_change_them(self, chunk, columns, monkeypatch):
        samples = normal(41, columns)
        expected = resampled_means(samples, 50, 0)
        held, make = [], np.random.default_rng

        class Recording:
            def __init__(self, seed):
                self.made = make(seed)

            def integers(self, n, size):
                held.append(math.prod(size))
                return self.made.integers(n, size=size)

        monkeypatch.setattr(bootstrap.np.random, "default_rng", Recording)
        found = resampled_means(samples, 50, 0, chunk)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        assert sum(held) == 50 * 41 and max(held) <= max(41, chunk)

    @settings(max_examples=40)
    @given(arrays(np.float64, (5, 4), elements=st.floats(-100, 100)), st.floats(-3, 3), st.integers(0, 2**63 - 1))
    def test_within_the_samples_and_linear(self, samples, scale, seed):
        samples = torch.from_numpy(samples)
        found = resampled_means(samples, 20, seed)
        assert (found >= samples.amin(0) - 1e-9).all() and (found <= samples.amax(0) + 1e-9).all()
        moved = resampled_means(scale * samples + 1, 20, seed)
        torch.testing.assert_close(moved, scale * found + 1, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize(
        "samples, options, words",
        [
            (torch.zeros(3), {}, r"samples is torch.float32 \[3\]"),
            (torch.zeros(0, 2), {}, r"samples is torch.float32 \[0, 2\]"),
            (torch.zeros(3, 2, dtype=torch.int64), {}, "samples is torch.int64"),
            (torch.tensor([[1.0], [math.nan]]), {}, "samples holds NaN"),
            (torch.tensor([[1.0], [math.inf]]), {}, "infinity"),
            (torch.ones(3, 1), {"resamples": 0}, "resamples is 0"),
            (torch.ones(3, 1), {"resamples": 2.0}, "resamples is 2.0"),
            (torch.ones(3, 1), {"resamples": True}, "resamples is True"),
            (torch.ones(3, 1), {"seed": -1}, "seed is -1"),
            (torch.ones(3, 1), {"seed": 2**63}, "seed is 9223372036854775808"),
            (torch.ones(3, 1), {"seed": None}, "seed is None"),
            (torch.ones(3, 1), {"chunk": 0}, "chunk is 0"),
        ],
    )
    def test_message_names_the_argument(self, samples, options, words):
        with pytest.raises(ValueError, match=words):
            resampled_means(samples, **{"resamples": 10, "seed": 0} | options)
