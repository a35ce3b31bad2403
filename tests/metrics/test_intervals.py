"""95 % intervals: over seeds by Student's t, over test samples by clusters; each against another way to the same."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lib.metrics.intervals import mean_with_interval, over_clusters, over_seeds, wilson

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)
Z = 1.959963984540054


def ends(found: dict) -> tuple[float, float]:
    return found["low"], found["high"]


def drawn(n: int, count: int, seed: int = 0):
    """Samples that share a part within each of `count` clusters of unlike sizes, and the clusters' names."""
    draw = np.random.default_rng(seed)
    clusters = [f"id {k}" for k in draw.integers(count, size=n)]
    shared = dict(zip(sorted(set(clusters)), draw.normal(size=count), strict=False))
    return torch.tensor([shared[name] + draw.normal() for name in clusters]), clusters


def sandwich(samples: list[float], clusters: list) -> float:
    """The cluster-robust variance of a mean, as of a regression on a constant (Liang and Zeger), in plain Python."""
    mean = math.fsum(samples) / len(samples)
    sums: dict = {}
    for value, name in zip(samples, clusters, strict=True):
        sums[name] = sums.get(name, 0.0) + (value - mean)
    count = len(sums)
    return count / (count - 1) * math.fsum(total**2 for total in sums.values()) / len(samples) ** 2


class TestSeeds:
    @given(st.lists(NUMBERS, min_size=2, max_size=9))
    def test_is_scipys_t_interval(self, values):
        found = over_seeds(values)
        error = stats.sem(values)
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else [np.mean(values)] * 2
        assert found["value"] == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-9)
        assert ends(found) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
        assert found["n"] == len(values) and found["interval"] == "t over seeds"

    def test_three_seeds_by_hand(self):
        """With two degrees of freedom t at 0.975 is 0.95 √(2 / (4 · 0.975 · 0.025)) = 4.3027."""
        found = over_seeds([0.9, 1.0, 1.1])
        half = 0.95 * (2 / (4 * 0.975 * 0.025)) ** 0.5 * 0.1 / 3**0.5
        assert ends(found) == pytest.approx((1 - half, 1 + half), rel=1e-12)

    def test_one_seed_has_no_interval_and_says_so(self):
        found = over_seeds([0.4])
        assert (found["value"], found["n"], found["interval"]) == (0.4, 1, "none: one seed")
        assert all(map(math.isnan, ends(found)))

    @pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf"), 1.0], [[0.1, 0.2]]])
    def test_none_and_what_is_not_finite_are_refused(self, values, untyped):
        with pytest.raises(ValueError, match=r"^values is .*; allowed is a finite number for each of one seed or more"):
            over_seeds(values)

    def test_its_intervals_hold_the_truth_95_times_in_100(self):
        draw = np.random.default_rng(1)
        held = []
        for _ in range(4000):
            low, high = ends(over_seeds(draw.normal(2, 3, size=3).tolist()))
            held.append(low < 2 < high)
        assert np.mean(held) == pytest.approx(0.95, abs=0.014)  # four standard deviations


class TestMeans:
    @pytest.mark.parametrize(("n", "count"), [(60, 7), (200, 40), (9, 2)])
    def test_is_the_cluster_robust_t_interval(self, n, count):
        samples, clusters = drawn(n, count)
        found = over_clusters(samples, clusters)
        mean = math.fsum(samples.tolist()) / n
        half = stats.t.ppf(0.975, len(set(clusters)) - 1) * sandwich(samples.tolist(), clusters) ** 0.5
        assert found == {
            "value": pytest.approx(mean, abs=1e-12),
            "low": pytest.approx(mean - half, abs=1e-12),
            "high": pytest.approx(mean + half, abs=1e-12),
            "n": n,
            "interval": "t over clusters",
        }

    @given(st.lists(NUMBERS, min_size=2, max_size=12))
    def test_samples_that_are_clusters_of_their_own_have_the_plain_t_interval(self, values):
        found = over_clusters(torch.tensor(values, dtype=torch.float64))
        plain = over_seeds(values)
        for name in ("value", "low", "high"):
            assert found[name] == pytest.approx(plain[name], rel=1e-9, abs=1e-9)

    def test_its_intervals_hold_the_truth_95_times_in_100_and_those_without_clusters_do_not(self):
        """Twelve clusters of ten samples, of whose variance half is shared."""
        draw, clusters = np.random.default_rng(2), [k // 10 for k in range(120)]
        held = {"clustered": 0, "plain": 0}
        for _ in range(1000):
            samples = torch.tensor(draw.normal(size=12).repeat(10) + draw.normal(size=120))
            for name, given_clusters in (("clustered", clusters), ("plain", None)):
                low, high = ends(over_clusters(samples, given_clusters))
                held[name] += low < 0 < high
        assert held["clustered"] / 1000 == pytest.approx(0.95, abs=0.028) and held["plain"] < 750


class TestShares:
    @given(st.lists(st.booleans(), min_size=2, max_size=40))
    def test_samples_that_are_clusters_of_their_own_have_wilsons_interval(self, successes):
        found = over_clusters(torch.tensor(successes))
        low, high = stats.binomtest(sum(successes), len(successes)).proportion_ci(method="wilson")
        assert found["value"] == pytest.approx(sum(successes) / len(successes)) and found["n"] == len(successes)
        assert ends(found) == pytest.approx((low, high), abs=1e-9) and found["interval"] == "Wilson over clusters"

    def test_by_hand_with_the_design_effect(self):
        """Three clusters of 4, 2 and 2 with 4, 1 and 0 successes."""
        samples = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
        clusters = ["a"] * 4 + ["b"] * 2 + ["c"] * 2
        found = over_clusters(samples, clusters)
        variance = (1.5**2 + 0.25**2 + 1.25**2) / 64
        trials = 0.625 * 0.375 / variance
        assert 1 < trials < 8
        for limit in ends(found):
            assert abs(0.625 - limit) == pytest.approx(Z * (limit * (1 - limit) / trials) ** 0.5, rel=1e-9)
        assert found["value"] == 0.625 and found["n"] == 8 and found["low"] < 0.625 < found["high"]

    def test_its_intervals_hold_the_truth_95_times_in_100_and_those_without_clusters_do_not(self):
        """Forty clusters of ten samples that succeed with a probability of their own, 0.7 on average."""
        draw, clusters = np.random.default_rng(3), [k // 10 for k in range(400)]
        held = {"clustered": 0, "plain": 0}
        for _ in range(1000):
            samples = torch.tensor(draw.random(400) < draw.beta(1.4, 0.6, size=40).repeat(10))
            for name, given_clusters in (("clustered", clusters), ("plain", None)):
                low, high = ends(over_clusters(samples, given_clusters))
                held[name] += low < 0.7 < high
        assert held["clustered"] / 1000 == pytest.approx(0.95, abs=0.028) and held["plain"] < 850

    @pytest.mark.parametrize("success", [True, False])
    def test_where_all_samples_agree_each_cluster_is_one_trial(self, success):
        samples, clusters = torch.full((12,), success), [k // 3 for k in range(12)]
        low, high = wilson(4 * success, 4)
        assert ends(over_clusters(samples, clusters)) == pytest.approx((low, high), abs=1e-9)

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=4, max_size=20))
    def test_clusters_that_balance_one_another_never_make_an_interval_shorter_than_wilsons(self, drawn):
        successes, clusters = zip(*drawn, strict=True)
        found = over_clusters(torch.tensor(successes), [0, 1, *clusters[2:]])
        low, high = wilson(sum(successes), len(successes))
        assert found["low"] <= low + 1e-9 and high - 1e-9 <= found["high"]


KINDS = pytest.mark.parametrize("kind", [torch.bool, torch.float64])


@KINDS
@given(st.lists(st.integers(0, 1), min_size=3, max_size=15), st.integers(2, 4), st.integers(0, 99))
def test_samples_that_are_told_several_times_tell_nothing_new(kind, values, times, seed):
    """A cluster that repeats its sample has the interval of the sample told once."""
    once = torch.tensor(values).to(kind)
    found = over_clusters(once, range(len(values)))
    places = np.random.default_rng(seed).permutation(list(range(len(values))) * times).tolist()
    again = over_clusters(once[places], places)
    assert again["n"] == times * found["n"]
    for name in ("value", "low", "high"):
        assert again[name] == pytest.approx(found[name], abs=1e-9)


@KINDS
def test_names_of_clusters_and_the_order_of_samples_do_not_matter(kind):
    samples, clusters = drawn(50, 8)
    samples = samples > 0 if kind == torch.bool else samples
    found, order = over_clusters(samples, clusters), np.random.default_rng(0).permutation(50)
    other = over_clusters(samples[order], [("picture", hash(clusters[k])) for k in order])
    for name in ("value", "low", "high"):
        assert other[name] == pytest.approx(found[name], abs=1e-12)


@KINDS
def test_samples_that_agree_within_clusters_are_told_less_surely(kind):
    samples, clusters = drawn(300, 12)
    samples = samples > 0 if kind == torch.bool else samples
    (low, high), (below, above) = ends(over_clusters(samples, clusters)), ends(over_clusters(samples))
    assert low < below < above < high and (high - low) > 1.5 * (above - below)


@pytest.mark.parametrize(
    ("number", "value", "n", "why"),
    [
        (over_seeds([0.3]), 0.3, 1, "none: one seed"),
        (over_seeds([1.0], trials=500), 1.0, 1, "none: one seed"),
        (over_clusters(torch.tensor([0.25])), 0.25, 1, "none: one cluster"),
        (over_clusters(torch.tensor([0.25, 0.75, 0.5]), ["a"] * 3), 0.5, 3, "none: one cluster"),
        (over_clusters(torch.tensor([True, True, False, True]), [7] * 4), 0.75, 4, "none: one cluster"),
        (mean_with_interval(torch.tensor([0.25]), seed=0), 0.25, 1, "none: one sample"),
    ],
)
def test_one_unit_alone_has_a_value_and_no_interval(number, value, n, why):
    assert number["value"] == pytest.approx(value) and number["n"] == n and number["interval"] == why
    assert math.isnan(number["low"]) and math.isnan(number["high"])


def test_two_units_have_an_interval():
    shares, values = torch.tensor([True, True]), torch.tensor([0.3, 0.4])
    for number in (over_seeds([0.3, 0.4]), over_clusters(values), over_clusters(shares), mean_with_interval(values, 0)):
        assert number["low"] < number["value"] <= number["high"] and not number["interval"].startswith("none")


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "clusters", "told"),
        [
            ([0.5, float("nan")], None, "2 of 2"),
            ([0.5, float("inf")], ["a", "b"], "2 of 2"),
            ([float("nan")], None, "1 of 1"),
            ([], [], "0 of 0"),
        ],
    )
    def test_no_sample_and_what_is_not_finite(self, values, clusters, told):
        message = rf"^samples are {told} clusters; allowed are finite ones of one at least\.$"
        with pytest.raises(ValueError, match=message):
            over_clusters(torch.tensor(values), clusters)

    def test_clusters_that_are_not_one_a_sample(self):
        with pytest.raises(ValueError, match=r"^clusters has 2 names for 3 samples; allowed is one a sample\.$"):
            over_clusters(torch.ones(3), ["a", "b"])
