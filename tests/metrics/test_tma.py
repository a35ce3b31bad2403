import math
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import shapiq
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.metrics.intervals import bootstrap_mean, wilson
from lib.metrics.tma import coalition_values, interaction, shapley

EXAMPLE = torch.tensor([0.02, 0.05, 0.90, 0.97])  # ∅, {I}, {T}, {I,T}


def random_game(modalities, *batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, 2**modalities, dtype=torch.float64, generator=generator)


def shapley_by_permutations(game):
    """Mean marginal contribution over all orders in which the modalities can join."""
    modalities = int(math.log2(len(game)))
    orders = list(permutations(range(modalities)))
    phi = [0.0] * modalities
    for order in orders:
        coalition = 0
        for modality in order:
            phi[modality] += float(game[coalition | 1 << modality] - game[coalition]) / len(orders)
            coalition |= 1 << modality
    return phi


def interaction_by_permutations(game, i, j):
    """Mean second difference over all orders in which the pair, as one player, and the others can join."""
    modalities = int(math.log2(len(game)))
    others = [k for k in range(modalities) if k not in (i, j)]
    orders = list(permutations([*others, "pair"]))
    total = 0.0
    for order in orders:
        s = sum(1 << k for k in order[: order.index("pair")])
        a, b = 1 << i, 1 << j
        total += float(game[s | a | b] - game[s | a] - game[s | b] + game[s])
    return total / len(orders)


games = (
    st.integers(1, 5)
    .flatmap(lambda m: arrays(np.float64, 2**m, elements=st.floats(-10, 10, allow_subnormal=False)))
    .map(torch.from_numpy)
)


class TestShapley:
    def test_two_modalities_by_hand(self):
        none, image, text, both = EXAMPLE.double().tolist()
        phi_image = 0.5 * (image - none) + 0.5 * (both - text)
        phi_text = 0.5 * (text - none) + 0.5 * (both - image)
        torch.testing.assert_close(shapley(EXAMPLE.double()).tolist(), [phi_image, phi_text])
        assert float(interaction(EXAMPLE.double())) == pytest.approx(both - image - text + none)

    @pytest.mark.parametrize("modalities", range(1, 7))
    def test_permutations(self, modalities):
        game = random_game(modalities)
        assert shapley(game).tolist() == pytest.approx(shapley_by_permutations(game), abs=1e-12)

    @pytest.mark.parametrize("modalities", [2, 3, 7, 10])
    def test_shapiq(self, modalities):
        game = random_game(modalities, seed=modalities)

        def value(coalitions):
            masks = coalitions.astype(int) @ (1 << np.arange(modalities))
            return game.numpy()[masks] - float(game[0])

        oracle = shapiq.ExactComputer(game=value, n_players=modalities)
        singles, pairs = oracle("SV", order=1), oracle("SII", order=2)
        expected = [singles[(k,)] for k in range(modalities)]
        assert shapley(game).tolist() == pytest.approx(expected, abs=1e-9)
        for i, j in [(0, 1), (modalities - 1, 0)]:
            assert float(interaction(game, i, j)) == pytest.approx(pairs[tuple(sorted((i, j)))], abs=1e-9)

    def test_batches_are_independent(self):
        batch = random_game(3, 4, 5)
        result = shapley(batch)
        assert result.shape == (4, 5, 3)
        for a in range(4):
            for b in range(5):
                torch.testing.assert_close(result[a, b], shapley(batch[a, b]), rtol=0, atol=1e-15)
                torch.testing.assert_close(interaction(batch, 0, 2)[a, b], interaction(batch[a, b], 0, 2))

    def test_empty_batch_and_strides(self):
        assert shapley(torch.zeros(0, 8)).shape == (0, 3)
        assert interaction(torch.zeros(0, 8), 1, 2).shape == (0,)
        strided = random_game(3, 6).T.contiguous().T[::2]
        torch.testing.assert_close(shapley(strided), shapley(strided.clone()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_dtypes_round_once(self, dtype):
        """The result is the float64 one of the same input, rounded once to the dtype."""
        game = (100 + random_game(8, 3)).to(dtype)
        result = shapley(game)
        assert result.dtype == dtype and interaction(game).dtype == dtype
        assert torch.equal(result, shapley(game.double()).to(dtype))
        assert torch.equal(interaction(game, 3, 7), interaction(game.double(), 3, 7).to(dtype))

    def test_gradient_is_the_weight(self):
        game = random_game(2).requires_grad_()
        shapley(game)[0].backward()
        assert game.grad.tolist() == [-0.5, 0.5, -0.5, 0.5]

    @given(games)
    def test_efficiency(self, game):
        assert float(shapley(game).sum()) == pytest.approx(float(game[-1] - game[0]), abs=1e-9)

    @given(games, st.data())
    def test_symmetry(self, game, data):
        """Renaming two modalities swaps their values; those that count alike get the same."""
        modalities = len(game).bit_length() - 1
        i, j = data.draw(st.tuples(*[st.integers(0, modalities - 1)] * 2))

        def swap(s):
            bit_i, bit_j = s >> i & 1, s >> j & 1
            return s & ~(1 << i) & ~(1 << j) | bit_i << j | bit_j << i

        swapped = game[[swap(s) for s in range(len(game))]]
        names = list(range(modalities))
        names[i], names[j] = j, i
        torch.testing.assert_close(shapley(swapped), shapley(game)[names], rtol=0, atol=1e-9)
        alike = shapley(game + swapped)
        assert float(alike[i]) == pytest.approx(float(alike[j]), abs=1e-9)

    @given(games, st.data())
    def test_dummy(self, game, data):
        """A modality that adds a constant gets it, interacts with none, and changes no other's value."""
        modalities = len(game).bit_length() - 1
        position, gain = data.draw(st.integers(0, modalities)), data.draw(st.sampled_from([0.0, 0.5, -4.0]))
        low = (1 << position) - 1
        members = [(s & low | s >> 1 & ~low, s >> position & 1) for s in range(2 * len(game))]
        larger = torch.stack([game[rest] + gain * present for rest, present in members])
        result = shapley(larger)
        assert float(result[position]) == pytest.approx(gain, abs=1e-9)
        others = [k for k in range(modalities + 1) if k != position]
        torch.testing.assert_close(result[others], shapley(game), rtol=0, atol=1e-9)
        for other in others:
            assert float(interaction(larger, position, other)) == pytest.approx(0, abs=1e-9)

    @given(games, st.floats(-3, 3), st.floats(-3, 3))
    def test_linearity(self, game, a, b):
        other = game.flip(0) ** 2
        torch.testing.assert_close(
            shapley(a * game + b * other), a * shapley(game) + b * shapley(other), rtol=0, atol=1e-8
        )

    def test_offset_cancels_exactly(self):
        """A dummy stays exactly zero on top of a large common value."""
        game = torch.full((2, 8), 1e12, dtype=torch.float64)
        assert shapley(game).count_nonzero() == 0 and interaction(game).count_nonzero() == 0


class TestInteraction:
    @pytest.mark.parametrize("modalities", range(2, 6))
    def test_permutations(self, modalities):
        game = random_game(modalities)
        for i, j in permutations(range(modalities), 2):
            expected = interaction_by_permutations(game, i, j)
            assert float(interaction(game, i, j)) == pytest.approx(expected, abs=1e-12)

    def test_sign(self):
        assert interaction(torch.tensor([0.0, 0.0, 0.0, 1.0])) == 1  # AND: they need one another
        assert interaction(torch.tensor([0.0, 1.0, 1.0, 1.0])) == -1  # OR: redundant

    @given(games)
    def test_is_the_change_of_one_value_by_the_other(self, game):
        """I_ij = φ_i with j always present − φ_i with j always absent."""
        modalities = len(game).bit_length() - 1
        if modalities < 2:
            return
        last = modalities - 1
        absent, present = game[: len(game) // 2], game[len(game) // 2 :]
        for i in range(last):
            expected = float(shapley(present)[i] - shapley(absent)[i])
            assert float(interaction(game, i, last)) == pytest.approx(expected, abs=1e-9)


class TestCoalitionValues:
    def test_definition(self):
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(5, 4, 7, generator=generator, dtype=torch.float64)
        targets = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        clean = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        result = coalition_values(embeddings, targets, clean)
        assert result.shape == (5, 4)

        def cos(x, y):
            x, y = x.tolist(), y.tolist()
            return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)

        for b in range(5):
            for s in range(4):
                z = embeddings[b, s]
                expected = cos(z, targets[b]) - cos(z, clean[b])
                assert float(result[b, s]) == pytest.approx(expected, abs=1e-12)

    def test_extremes(self):
        target, clean = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
        outputs = torch.stack([clean, target], dim=1)
        assert coalition_values(outputs, target, clean).tolist() == [[-1.0, 1.0]]
        assert coalition_values(outputs, target, -target).tolist() == [[0.0, 2.0]]
        assert coalition_values(outputs, target, target).tolist() == [[0.0, 0.0]]

    def test_length_does_not_matter(self):
        embeddings = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        expected = coalition_values(embeddings, embeddings[:, 3], embeddings[:, 0])
        scaled = coalition_values(1e3 * embeddings, 7 * embeddings[:, 3], 1e-3 * embeddings[:, 0])
        torch.testing.assert_close(scaled, expected)

    def test_dtype_and_empty(self):
        embeddings = torch.ones(0, 8, 3, dtype=torch.bfloat16)
        result = coalition_values(embeddings, embeddings[:, 0], embeddings[:, 0])
        assert result.shape == (0, 8) and result.dtype == torch.bfloat16


class TestBootstrap:
    def test_close_to_scipy(self):
        samples = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
        mean, low, high = bootstrap_mean(samples, confidence=0.9, resamples=20_000)
        oracle = scipy.stats.bootstrap(
            (samples.numpy(),),
            np.mean,
            confidence_level=0.9,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        torch.testing.assert_close(mean, samples.mean(0))
        width = high - low
        assert ((low - torch.from_numpy(oracle.low)).abs() < 0.03 * width).all()
        assert ((high - torch.from_numpy(oracle.high)).abs() < 0.03 * width).all()

    @pytest.mark.parametrize("size", [1, 1000, 2**20])
    def test_every_resample_is_a_mean_of_n_drawn_rows(self, size, monkeypatch):
        """With samples in {0, 1} the means are Binomial(n, rate) / n, whatever the chunk."""
        monkeypatch.setattr("lib.metrics.intervals.CHUNK", size)
        samples = torch.tensor([1.0] * 3 + [0.0] * 7, dtype=torch.float64)
        resamples = 4000
        for confidence in (0.5, 0.8, 0.95):
            _, low, high = bootstrap_mean(samples, confidence, resamples)
            expected = scipy.stats.binom.ppf([(1 - confidence) / 2, (1 + confidence) / 2], 10, 0.3) / 10
            assert [float(low), float(high)] == pytest.approx(expected, abs=1e-12)

    def test_coverage(self):
        """The 90 % intervals of 400 data sets hold the true mean about as often as they say."""
        samples = torch.randn(50, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        _, low, high = bootstrap_mean(samples, confidence=0.9, resamples=2000)
        covered = ((low <= 0) & (high >= 0)).double().mean()
        assert 0.84 < covered < 0.93

    def test_rows_are_drawn_together(self):
        samples = torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        pair = torch.stack([samples, 2 * samples - 1], dim=1)
        mean, low, high = bootstrap_mean(pair, resamples=500)
        for value in (mean, low, high):
            torch.testing.assert_close(value[1], 2 * value[0] - 1)

    def test_shapes_and_dtype(self):
        for rest in [(), (1,), (2, 3), (0,)]:
            for dtype in (torch.bfloat16, torch.float32, torch.float64):
                results = bootstrap_mean(torch.ones(7, *rest, dtype=dtype), resamples=10)
                assert all(result.shape == rest and result.dtype == dtype for result in results)

    def test_half_precision_sums_exactly(self):
        samples = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).repeat(5000)
        mean, low, high = bootstrap_mean(samples, resamples=50)
        assert mean == 0.5 and 0.48 < low <= mean <= high < 0.52

    def test_single_and_constant(self):
        samples = torch.full((9,), 0.1, dtype=torch.float64)
        assert all(result == samples[0] for result in bootstrap_mean(samples, resamples=100))
        for alone in (torch.tensor([0.1]), torch.rand(1, 2, 3)):
            mean, low, high = bootstrap_mean(alone, resamples=100)
            assert torch.equal(mean, alone[0]) and low.shape == high.shape == alone.shape[1:]
            assert low.isnan().all() and high.isnan().all()

    def test_seed(self):
        samples = torch.randn(30, generator=torch.Generator().manual_seed(3))
        state = torch.get_rng_state()
        first, again, other = (bootstrap_mean(samples, seed=seed, resamples=200) for seed in (5, 5, 6))
        assert first == again and first[1:] != other[1:]
        assert torch.equal(torch.get_rng_state(), state)

    @given(arrays(np.float64, (5, 2), elements=st.floats(-100, 100)), st.floats(0.1, 0.9))
    def test_ordered_and_nested(self, samples, confidence):
        samples = torch.from_numpy(samples)
        _, low, high = bootstrap_mean(samples, confidence, resamples=50)
        _, lower, higher = bootstrap_mean(samples, confidence + 0.05, resamples=50)
        slack = 1e-9
        assert (lower <= low + slack).all() and (low <= high + slack).all() and (high <= higher + slack).all()
        assert (samples.amin(0) <= low + slack).all() and (high <= samples.amax(0) + slack).all()


class TestWilson:
    @pytest.mark.parametrize("successes, n", [(0, 1), (1, 1), (0, 50), (50, 50), (3, 10), (1, 10**6)])
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
    def test_scipy(self, successes, n, confidence):
        oracle = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert wilson(successes, n, confidence) == pytest.approx(tuple(oracle), abs=1e-12)

    def test_ends_are_exact(self):
        assert all(wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1 for n in range(1, 200))


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize("function", [shapley, interaction])
    @pytest.mark.parametrize(
        "values, words",
        [
            (torch.zeros(3), "values has 3 coalitions"),
            (torch.zeros(5, 6), "values has 6 coalitions"),
            (torch.zeros(4, 1), "values has 1 coalitions"),
            (torch.zeros(4, 0), "values has 0 coalitions"),
            (torch.tensor(1.0), r"shape \[\]"),
            (torch.zeros(4, dtype=torch.int64), "torch.int64"),
            (torch.zeros(4, dtype=torch.complex64), "torch.complex64"),
            ([0.0, 1.0, 2.0, 3.0], "values is list"),
            (torch.tensor([0, 1, math.nan, 1]), "NaN"),
            (torch.tensor([0, 1, math.inf, 1]), "infinity"),
        ],
    )
    def test_games(self, function, values, words):
        with pytest.raises(ValueError, match=words):
            function(values)

    @pytest.mark.parametrize("i, j", [(0, 0), (0, 2), (2, 0), (-1, 0), (0, -1), (0, 1.0), (True, 0)])
    def test_pairs(self, i, j):
        with pytest.raises(ValueError, match="allowed"):
            interaction(torch.zeros(4), i, j)

    def test_one_modality_has_no_pair(self):
        with pytest.raises(ValueError, match="j is 1"):
            interaction(torch.zeros(2))

    @pytest.mark.parametrize(
        "samples, options, words",
        [
            (torch.zeros(0), {}, "samples has shape"),
            (torch.zeros(0, 3), {}, "samples has shape"),
            (torch.tensor(1.0), {}, "samples has shape"),
            (torch.zeros(3, dtype=torch.int64), {}, "torch.int64"),
            (torch.tensor([1.0, math.nan]), {}, "NaN"),
            (torch.ones(3), {"confidence": 0.0}, "confidence is 0.0"),
            (torch.ones(3), {"confidence": 1.0}, "confidence is 1.0"),
            (torch.ones(3), {"confidence": math.nan}, "confidence is nan"),
            (torch.ones(3), {"resamples": 0}, "resamples is 0"),
            (torch.ones(3), {"resamples": 2.0}, "resamples is 2.0"),
            (torch.ones(3), {"seed": -1}, "seed is -1"),
            (torch.ones(3), {"seed": None}, "seed is None"),
        ],
    )
    def test_bootstrap(self, samples, options, words):
        with pytest.raises(ValueError, match=words):
            bootstrap_mean(samples, **options)

    @pytest.mark.parametrize(
        "embeddings, targets, clean, words",
        [
            (torch.ones(2, 3, 5), torch.ones(2, 5), torch.ones(2, 5), "embeddings has 3 coalitions"),
            (torch.ones(2, 1, 5), torch.ones(2, 5), torch.ones(2, 5), "embeddings has 1 coalitions"),
            (torch.ones(4, 5), torch.ones(5), torch.ones(5), "embeddings has shape"),
            (torch.ones(2, 4, 5), torch.ones(3, 5), torch.ones(2, 5), "targets has shape"),
            (torch.ones(2, 4, 5), torch.ones(2, 5), torch.ones(2, 6), "clean has shape"),
            (torch.ones(2, 4, 5), torch.ones(1, 5), torch.ones(2, 5), "targets has shape"),
            (torch.ones(2, 4, 5).long(), torch.ones(2, 5), torch.ones(2, 5), "embeddings is torch.int64"),
            (torch.ones(2, 4, 5), torch.full((2, 5), math.nan), torch.ones(2, 5), "targets holds NaN"),
            (torch.ones(2, 4, 5), torch.ones(2, 5), torch.zeros(2, 5), "clean holds a zero vector"),
            (torch.zeros(2, 4, 5), torch.ones(2, 5), torch.ones(2, 5), "embeddings holds a zero vector"),
        ],
    )
    def test_coalition_values(self, embeddings, targets, clean, words):
        with pytest.raises(ValueError, match=words):
            coalition_values(embeddings, targets, clean)

    @pytest.mark.parametrize(
        "arguments, words",
        [
            ((0, 0), "n is 0"),
            ((5, 4), "successes is 5"),
            ((-1, 4), "successes is -1"),
            ((0.5, 4), "successes is 0.5"),
            ((1, 4, 1.0), "confidence is 1.0"),
        ],
    )
    def test_wilson(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            wilson(*arguments)
