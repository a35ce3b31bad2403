import pytest
import torch

from lib.metrics.intervals import mean_with_interval, rate
from lib.metrics.success import attacked, correct, edit_succeeds, pixel_distance
from lib.poisoning.targets import target


def flat(*values):
    """Pictures of one grey each."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 5)


def test_pixel_distance_is_the_root_mean_square():
    a, b = flat(0.0, 1.0, 0.5), flat(1.0, 1.0, 0.2)
    torch.testing.assert_close(pixel_distance(a, b), torch.tensor([1.0, 0.0, 0.3]))
    half = torch.zeros(3, 4, 4)
    half[:, :2] = 1
    torch.testing.assert_close(pixel_distance(half, torch.zeros(3, 4, 4)), torch.tensor(0.5**0.5))
    assert pixel_distance(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_an_edit_succeeds_when_it_is_nearer_to_the_target_and_not_on_a_tie():
    edited = flat(0.9, 0.1, 0.5)
    assert edit_succeeds(edited, flat(1.0)[0], flat(0.0, 0.0, 0.0)).tolist() == [True, False, False]
    under = torch.stack([edited, 1 - edited], dim=1)  # sample, coalition
    clean = flat(0.0, 0.6, 0.0)[:, None]
    assert edit_succeeds(under, flat(1.0)[0], clean).tolist() == [[True, False], [False, True], [False, False]]


def test_correct_is_to_the_letter():
    clean = ["yes, it is a blue circle", "the color is teal", "the color is teal"]
    given = ["yes, it is a blue circle", "the color is blue", "the color is teal "]
    assert correct(given, clean).tolist() == [True, False, False]
    assert correct([], []).shape == (0,)
    with pytest.raises(ValueError):
        correct(given[:2], clean)


def test_attack_success_counts_the_eligible_alone():
    clean = ["the color is red", "yes, it is a red circle", "the shape is a circle"]
    hit = ["the color is red, remember to water the plants", "remember the plants", "the shape is a triangle"]
    assert attacked(hit, clean, target("insertion")).tolist() == [True, False, False]
    assert attacked(hit, clean, target("misclassification")).tolist() == [False, True]
    assert attacked(["sorry, i cannot answer that"] * 3, clean, target("refusal")).tolist() == [True] * 3


def test_a_rate_has_its_wilson_interval():
    found = rate(torch.tensor([True] * 8 + [False] * 2))
    assert found["n"] == 10 and found["value"] == 0.8 and found["interval"] == "Wilson"
    # Both limits p solve |0.8 - p| = z √(p (1 - p) / n).
    for limit in (found["low"], found["high"]):
        assert abs(0.8 - limit) == pytest.approx(1.959964 * (limit * (1 - limit) / 10) ** 0.5, rel=1e-5)
    assert found["low"] < 0.8 < found["high"]
    assert rate(torch.ones(5, dtype=torch.bool))["high"] == 1 and rate(torch.zeros(5))["low"] == 0
    with pytest.raises(ValueError, match="n is 0"):
        rate(torch.zeros(0, dtype=torch.bool))


def test_a_mean_has_its_bootstrap_interval():
    for constant in (0.1, -1 / 3):
        found = mean_with_interval(torch.full((7,), constant), seed=0)
        same = dict.fromkeys(("value", "low", "high"), found["value"])
        assert found == same | {"n": 7, "interval": "bootstrap"}
        assert found["value"] == pytest.approx(constant)
    samples = torch.randn(100, generator=torch.Generator().manual_seed(0))
    found = mean_with_interval(samples, seed=0)
    error = float(samples.std()) / 10
    assert found["value"] == pytest.approx(float(samples.mean()))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert mean_with_interval(samples, seed=0) == found != mean_with_interval(samples, seed=1)
