import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.metrics.coalitions import interactions
from lib.metrics.tma import interaction, shapley

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def random_game(modalities, *batch, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, 2**modalities, generator=draw, dtype=torch.float64).to(dtype)


def every(game):
    """I_T of all coalitions T, by index."""
    return interactions(game, tuple(range(game.shape[-1])))


def interactions_by_definition(game):
    """Weighted mean over the S outside T of the |T|-th difference, as Grabisch and Roubens define it."""
    v, everyone = game.double().tolist(), len(game) - 1
    others = [everyone.bit_count() - t.bit_count() for t in range(len(v))]

    def weight(t, s):
        n, r = others[t], (s & ~t).bit_count()
        return math.factorial(r) * math.factorial(n - r) / math.factorial(n + 1)

    return [
        math.fsum((-1) ** (t & ~s).bit_count() * weight(t, s) * v[s] for s in range(len(v))) for t in range(len(v))
    ]


games = (
    st.integers(1, 5)
    .flatmap(lambda m: arrays(np.float64, 2**m, elements=st.floats(-10, 10, allow_subnormal=False)))
    .map(torch.from_numpy)
)


class TestDefinition:
    @pytest.mark.parametrize("modalities", [1, 2, 3, 4, 6])
    def test_sums_written_out(self, modalities):
        game = random_game(modalities, 3)
        for found, row in zip(every(game), game, strict=True):
            assert found.tolist() == pytest.approx(interactions_by_definition(row), abs=1e-12)

    @pytest.mark.parametrize("modalities", [2, 3, 5])
    def test_shapiq(self, modalities):
        """shapiq's exact computer, for every coalition and the empty one."""
        from shapiq.game_theory.exact import ExactComputer

        game = random_game(modalities, seed=1)
        computer = ExactComputer(
            lambda rows: game.numpy()[np.asarray(rows, dtype=int) @ (1 << np.arange(modalities))], modalities
        )
        ours, theirs = every(game), computer("SII", modalities)
        for t in range(2**modalities):
            members = tuple(i for i in range(modalities) if t >> i & 1)
            assert float(ours[t]) == pytest.approx(theirs.dict_values[members], abs=1e-12)

    def test_two_modalities_are_tma_and_cti(self):
        """By hand, for v = (∅, I, T, IT)."""
        none, image, text, both = 0.02, 0.05, 0.90, 0.97
        expected = [
            (none + both) / 3 + (image + text) / 6,
            (image - none + both - text) / 2,
            (text - none + both - image) / 2,
            both - image - text + none,
        ]
        game = torch.tensor([none, image, text, both], dtype=torch.float64)
        assert every(game).tolist() == pytest.approx(expected, abs=1e-15)

    @pytest.mark.parametrize("modalities", [2, 7, 10])
    def test_agrees_with_shapley_and_pairs(self, modalities):
        """I_{i} = φ_i, and the pairs are `interaction`."""
        game = random_game(modalities, 2)
        all_of_them = every(game)
        for i in range(modalities):
            torch.testing.assert_close(all_of_them[:, 1 << i], shapley(game)[:, i], rtol=0, atol=1e-10)
        last = modalities - 1
        torch.testing.assert_close(all_of_them[:, 1 | 1 << last], interaction(game, last, 0), rtol=0, atol=1e-10)

    def test_many_modalities(self):
        """A product of all modalities but one: I_T = 1/(n − |T| + 1) for T among its n members."""
        modalities, members = 13, (1 << 12) - 1
        game = torch.tensor([float(s & members == members) for s in range(2**modalities)])
        of = (0, 1, 3, members, 1 << 12, members + 1)
        expected = [1 / (13 - t.bit_count()) if t & ~members == 0 else 0 for t in of]
        assert interactions(game, of).tolist() == pytest.approx(expected, abs=1e-6)


class TestProperties:
    @settings(max_examples=40)
    @given(games)
    def test_efficiency(self, game):
        """Shapley values share out v(all) − v(∅)."""
        singles = tuple(1 << i for i in range(len(game).bit_length() - 1))
        assert float(interactions(game, singles).sum()) == pytest.approx(float(game[-1] - game[0]), abs=1e-9)

    @settings(max_examples=40)
    @given(games, st.data())
    def test_renaming(self, game, data):
        """Renaming the modalities renames the coalitions and nothing else."""
        names = data.draw(st.permutations(range(len(game).bit_length() - 1)))
        renamed = [sum((s >> i & 1) << name for i, name in enumerate(names)) for s in range(len(game))]
        other = torch.empty_like(game)
        other[renamed] = game
        torch.testing.assert_close(every(other)[renamed], every(game), rtol=0, atol=1e-9)

    @settings(max_examples=40)
    @given(games, st.data())
    def test_a_wanted_one_is_that_of_all(self, game, data):
        of = tuple(data.draw(st.lists(st.integers(0, len(game) - 1), min_size=1, max_size=5)))
        torch.testing.assert_close(interactions(game, of), every(game)[list(of)], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("value", [0.1, -1e12])
    def test_an_offset_cancels_exactly(self, value):
        game = torch.full((2, 8), value, dtype=torch.float64)
        found = every(game)
        assert found[:, 1:].count_nonzero() == 0
        torch.testing.assert_close(found[:, 0], game[:, 0])


class TestInputs:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes_round_once(self, dtype):
        """The float64 result of the same input, rounded once to its dtype."""
        game = (100 + random_game(4, 3)).to(dtype)
        result = every(game)
        assert result.dtype == dtype
        assert torch.equal(result, every(game.double()).to(dtype))

    def test_batches_and_strides(self):
        """Each game of any batch as on its own."""
        game = random_game(3, 5, 4)[::2].transpose(0, 1)
        turned = random_game(3, 7).T.contiguous().T
        found = every(game)
        assert found.shape == (4, 3, 8)
        for index in np.ndindex(4, 3):
            torch.testing.assert_close(found[index], every(game[index].clone()), rtol=0, atol=1e-13)
        torch.testing.assert_close(every(turned), every(turned.contiguous()))
        assert every(game[:0]).shape == (0, 3, 8)

    @pytest.mark.parametrize("rows", [41, 401])
    def test_odd_numbers_of_games(self, rows):
        game = random_game(3, rows)
        below = torch.tensor([[float(t & s == t) for t in range(8)] for s in range(8)], dtype=torch.float64)
        sizes = torch.tensor([s.bit_count() for s in range(8)], dtype=torch.float64)
        beyond = sizes[:, None] - sizes
        share = below / (beyond + 1).clamp(min=1)
        dividends = game @ (below * (-1) ** beyond).T  # Harsanyi's
        torch.testing.assert_close(every(game), dividends @ share, rtol=0, atol=1e-12)

    def test_the_input_stays_as_it_was(self):
        game = random_game(3, 4)
        before = game.clone()
        every(game), interactions(game, (1, 2))
        assert torch.equal(game, before)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_stays_in_its_game(self, bad):
        game = random_game(3, 3)
        clean = [every(game), interactions(game, (0, 3))]
        game[1, 0b010] = bad
        dirty = [every(game), interactions(game, (0, 3))]
        for before, after in zip(clean, dirty, strict=True):
            assert torch.equal(after[[0, 2]], before[[0, 2]])
        assert not dirty[0][1].isfinite().any() and not dirty[1][1].isfinite().any()


class TestGradients:
    @pytest.mark.parametrize("modalities", [1, 3])
    def test_gradcheck(self, modalities):
        game = random_game(modalities, 2).requires_grad_()
        for transform in (every, lambda values: interactions(values, (1, 0))):
            assert torch.autograd.gradcheck(transform, game)
            assert torch.autograd.gradgradcheck(lambda x, f=transform: f(x).square(), game, fast_mode=True)

    def test_they_have_the_dtype_of_the_values(self):
        """∂ Σ φ_i/∂v is 1 for all together, −1 for none and 0 else."""
        game = random_game(4, 2, dtype=torch.bfloat16).requires_grad_()
        shapley(game).sum().backward()  # an expanded gradient
        assert game.grad.dtype == torch.bfloat16
        assert game.grad.flatten().tolist() == pytest.approx(([-1.0] + [0.0] * 14 + [1.0]) * 2, abs=1e-12)

@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize(
        "values, words",
        [
            (torch.zeros(3), "values has 3 coalitions"),
            (torch.zeros(4, 1), "values has 1 coalitions"),
            (torch.zeros(4, 0), "values has 0 coalitions"),
            (torch.tensor(1.0), r"shape \[\]"),
            (torch.zeros(4, dtype=torch.int64), "values is torch.int64"),
            (torch.zeros(4, dtype=torch.complex64), "values is torch.complex64"),
        ],
    )
    def test_games(self, values, words):
        with pytest.raises(ValueError, match=words):
            interactions(values, (1,))

    @pytest.mark.parametrize("of", [(), (4,), (-1,), (1.0,), (True,), ("1",)])
    def test_wanted(self, of):
        with pytest.raises(ValueError, match=r"of is .*; allowed are bit masks from 0 to 3"):
            interactions(torch.zeros(4), of)
