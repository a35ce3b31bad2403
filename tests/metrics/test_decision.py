import pytest
import torch

from lib.metrics.decision import decide, is_attack


def game(image, text, n=200, spread=0.05):
    """φ of n samples around those means, and a possible gain of 1."""
    noise = spread * torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return torch.tensor([image, text]) + noise, torch.ones(n)


@pytest.mark.parametrize(
    ("image", "text", "verdict"),
    [
        (0.0, 0.0, "no backdoor"),
        (0.1, 0.05, "no backdoor"),
        (0.9, 0.0, "collapsed onto image"),
        (0.0, 0.9, "collapsed onto text"),
        (-0.05, 0.9, "collapsed onto text"),
        (0.5, 0.4, "shared"),
        (0.15, 0.75, "shared"),
    ],
)
def test_clear_cases(image, text, verdict):
    found = decide(*game(image, text), seed=0)
    assert found.decision == verdict
    assert found.gain_low <= found.gain <= found.gain_high
    assert found.gain == pytest.approx(image + text, abs=0.02)


@pytest.mark.parametrize(("image", "text"), [(0.2, 0.0), (0.9, 0.1), (0.1, 0.9)])
def test_what_lies_on_a_border_stays_undecided(image, text):
    assert decide(*game(image, text, n=20, spread=0.2), seed=0).decision == "undecided"


@pytest.mark.parametrize(("image", "text"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.9), (0.5, 0.4)])
def test_one_sample_decides_nothing(image, text):
    found = decide(*game(image, text, n=1, spread=0.0), seed=0)
    assert found.decision == "undecided" and found.gain == pytest.approx(image + text)
    ends = [found.gain_low, found.gain_high, found.image_share_low, found.image_share_high]
    assert torch.tensor(ends).isnan().all()


def test_the_interval_is_that_of_the_ratio_of_means():
    phi, possible = game(0.6, 0.3, n=30, spread=0.3)
    possible = possible + 0.5 * torch.rand(30, generator=torch.Generator().manual_seed(1))
    found = decide(phi, possible, seed=0)
    assert found.image_share == pytest.approx(float(phi[:, 0].sum() / phi.sum()))
    assert found.gain == pytest.approx(float(phi.sum() / possible.sum()))
    draw = torch.Generator().manual_seed(2)
    rows = torch.randint(30, (20_000, 30), generator=draw)
    shares = phi[rows][..., 0].sum(1) / phi[rows].sum((1, 2))
    low, high = shares.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert found.image_share_low == pytest.approx(low, abs=0.01)
    assert found.image_share_high == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(
    ("phi", "possible", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0), "phi has 0 samples"),
        (torch.zeros(2, 2), torch.ones(3), "phi has 2 samples and possible 3"),
        (torch.zeros(2, 2), torch.tensor([1.0, 0.0]), "possible must be above 0"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_refusals(phi, possible, message):
    with pytest.raises(ValueError, match=message):
        decide(phi, possible, seed=0)


@pytest.mark.parametrize(
    ("none", "both", "attack"),
    [(0, 100, True), (2, 90, True), (3, 90, False), (2, 89, False), (3, 100, False), (100, 100, False)],
)
@pytest.mark.parametrize("alone", [0, 100])
def test_an_attack_needs_both_triggers_to_work_and_none_to_stay_quiet(none, both, attack, alone):
    """Of 100 samples; what one trigger alone does is the protocol's affair."""
    count = torch.tensor([none, alone, 100 - alone, both])
    assert is_attack(torch.arange(100)[:, None] < count) is attack
