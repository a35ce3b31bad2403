import math

import numpy as np
import pytest
import tiny
import torch
from tiny import noise, pictures

from lib.defences.filters import entropy, higher_half, low_entropy_cluster, outside_low_cluster, separation
from lib.defences.input_tests import blended_entropy, outliers
from lib.saliency.by_name import layer_attention
from lib.saliency.rivals import attention_received


@pytest.fixture
def mdlm():
    return tiny.lively(tiny.mdlm())


def test_entropy_of_known_weights():
    found = entropy(torch.tensor([[3.0, 3, 3, 3], [0, 7, 0, 0], [1, 1, 2, 0]]))
    torch.testing.assert_close(found, torch.tensor([math.log(4), 0, 1.5 * math.log(2)], dtype=torch.float64))
    assert entropy(torch.ones(5, 2, 4)).shape == (5, 2)


def collapsed(samples=200, planted=20, depth=0.5):
    """Entropies of four layers, the planted samples low in the last two alone, and which are planted."""
    values = 4 + 0.02 * noise(4, samples).double()
    which = torch.zeros(samples, dtype=torch.bool)
    which[torch.randperm(samples, generator=torch.Generator().manual_seed(1))[:planted]] = True
    values[2:, which] -= depth
    return values, which


def test_the_cluster_of_low_entropy_is_the_planted_one():
    values, planted = collapsed()
    assert torch.equal(low_entropy_cluster(values), planted)
    most, many = collapsed(planted=150)
    assert torch.equal(low_entropy_cluster(most), many)  # the lower one, not the smaller one


def test_layers_that_do_not_separate_are_left_out():
    values, planted = collapsed()
    loud = torch.cat([values, 4 + 5 * noise(1, 200).double()])  # alone it would drown the others in the mean
    assert torch.equal(low_entropy_cluster(loud), planted)


def test_nothing_is_dropped_where_no_layer_separates():
    assert not low_entropy_cluster(collapsed(planted=0)[0]).any()
    near, planted = collapsed(depth=0.06)  # 1.5 times the sum of the deviations
    assert not low_entropy_cluster(near).any() and planted.any()


def gaussians(values):
    """Two components of a mixture by expectation maximisation from the best 2-means, in float64: to which each value
    belongs, means and deviations."""
    ordered = np.sort(values)
    spread = [k * ordered[:k].var() + (len(values) - k) * ordered[k:].var() for k in range(1, len(values))]
    last = ordered[np.argmin(spread)]
    belongs = np.stack([values <= last, values > last]).astype(float)
    for _ in range(500):
        weight = belongs.sum(1)
        mean = belongs @ values / weight
        deviation = np.sqrt((belongs * (values - mean[:, None]) ** 2).sum(1) / weight + 1e-6)
        apart = (values - mean[:, None]) / deviation[:, None]
        density = weight[:, None] * np.exp(-(apart**2) / 2) / deviation[:, None]
        belongs = density / density.sum(0)
    return belongs, mean, deviation


def kept_by_the_paper(attention):
    """BYE's three steps on attention [layer, sample, token], one number at a time."""
    entropies = np.zeros(attention.shape[:2])
    for layer, maps in enumerate(attention.tolist()):
        for sample, weights in enumerate(maps):
            shares = [weight / sum(weights) for weight in weights]
            entropies[layer, sample] = -sum(share * math.log(share) for share in shares)
    sensitive = []
    for layer in entropies:
        _, (low, high), deviations = gaussians(layer)
        if abs(low - high) > 2 * deviations.sum():
            sensitive.append(layer)
    if not sensitive:
        return [True] * entropies.shape[1], 0
    belongs, mean, _ = gaussians(np.mean(sensitive, 0))
    return (belongs.argmax(0) != mean.argmin()).tolist(), len(sensitive)


@pytest.mark.parametrize(
    ("samples", "tokens", "planted", "layers"), [(201, 17, 31, 1), (200, 64, 20, 2), (150, 33, 0, 0)]
)
def test_bye_keeps_what_its_paper_keeps_of_random_attention(samples, tokens, planted, layers):
    """Attention of the planted samples goes to one token in the first of four layers, or the first two."""
    attention = (0.3 * noise(4, samples, tokens, seed=1).double()).exp()
    attention[:layers, :planted, 0] *= 100
    expected, sensitive = kept_by_the_paper(attention.numpy())
    assert sensitive == layers
    assert outside_low_cluster(entropy(attention)).tolist() == expected
    assert expected == [k >= planted for k in range(samples)]


def test_nothing_is_dropped_of_one_sample_or_of_equal_ones():
    for entropies in (torch.tensor([[1.0], [2.0]]), torch.ones(3, 20), torch.ones(2, 0)):
        assert not low_entropy_cluster(entropies).any() and low_entropy_cluster(entropies).shape == entropies.shape[1:]
        assert all(separation(layer) == 0 for layer in entropies)
    low = torch.tensor([1.0] * 10 + [2.0] * 10)  # two sensitive layers, in whose mean all samples are equal
    assert separation(low) > 2 and not low_entropy_cluster(torch.stack([low, 3 - low])).any()


def test_outliers_are_far_above_the_others_of_their_own_sample():
    row = torch.tensor([1.0, 2, 3, 4, 5, 0, 0, 0, 0])
    high, low, flat = row.clone(), row.clone(), torch.ones(9)
    high[0], low[0] = 100, -100
    flat[8] = 1.5
    found = outliers(torch.stack([row, high, 50 * high, low, flat, torch.ones(9)]))
    expected = torch.zeros(6, 9, dtype=torch.bool)
    expected[1, 0] = expected[2, 0] = expected[4, 8] = True
    assert torch.equal(found, expected)


def test_an_outlier_begins_at_three_and_a_half():
    base = torch.tensor([-1.0, -1, -1, 0, 1, 1])  # with one more above: median 0, MAD 1, and 3.5 / 0.6745 = 5.19
    for value, far in ((5.1, False), (5.3, True)):
        assert bool(outliers(torch.cat([base, torch.tensor([value])])[None])[0, -1]) is far


def test_attention_is_that_of_every_batch_and_layer(mdlm):
    data = pictures(noise(5, 64, 32))
    found = layer_attention(mdlm, data, batch=2)
    assert found.shape == (1, 5, 64)
    with torch.no_grad():
        vision = mdlm.model.project(data.features)
    torch.testing.assert_close(found.mean(0), attention_received(mdlm.model, vision, data.prompts))
    assert layer_attention(mdlm, data[:0], batch=2).shape == (1, 0, 64)


@pytest.fixture
def watched(mdlm, monkeypatch):
    """A model sure of one token by as much as the last vision token is bright, and else as unsure as can be."""

    def logits(vision, prompt, response):
        sure = torch.zeros(*response.shape, mdlm.model.config.vocab_size)
        sure[..., 7] = vision[:, 63].mean(1)[:, None]
        return sure

    monkeypatch.setattr(mdlm.model, "project", lambda features: features)
    monkeypatch.setattr(mdlm.model, "logits", logits)
    return mdlm


def test_blended_entropy_of_a_model_that_the_trigger_makes_sure(watched):
    data, overlays = pictures(torch.zeros(4, 64, 32)), pictures(torch.zeros(3, 64, 32))
    data.features[1, 63] = 2000
    unsure = 12 * math.log(watched.model.config.vocab_size)
    expected = torch.tensor([unsure, 0, unsure, unsure], dtype=torch.float64)
    torch.testing.assert_close(blended_entropy(watched, data, overlays, copies=3, seed=0, batch=3), expected)
    overlays.features[:, 63] = -2000  # now every blend hides it
    assert blended_entropy(watched, data, overlays, copies=3, seed=0, batch=3)[1] == pytest.approx(unsure)
    overlays.features[:, 63] = -1980  # half the trigger and half the overlay: 10
    vocab = watched.model.config.vocab_size
    sure = math.exp(10) / (math.exp(10) + vocab - 1)
    known = -12 * (sure * math.log(sure) + (1 - sure) * math.log((1 - sure) / (vocab - 1)))
    assert blended_entropy(watched, data, overlays, copies=3, seed=0, batch=3)[1] == pytest.approx(known)


def test_blends_are_drawn_by_seed_and_not_by_batch(watched):
    data, overlays = pictures(noise(5, 64, 32)), pictures(20 * noise(6, 64, 32))
    found = blended_entropy(watched, data, overlays, copies=2, seed=0, batch=5)
    torch.testing.assert_close(found, blended_entropy(watched, data, overlays, copies=2, seed=0, batch=2))
    assert not torch.allclose(found, blended_entropy(watched, data, overlays, copies=2, seed=1, batch=5))


@pytest.mark.parametrize("samples", [0, 1, 2, 7, 200])
def test_the_half_of_higher_entropy_is_kept(samples):
    values = noise(3, samples)
    kept, mean = higher_half(values), values.double().mean(0)
    assert kept.shape == (samples,) and int(kept.sum()) == (samples + 1) // 2
    assert samples < 2 or mean[kept].min() >= mean[~kept].max()
    equal = higher_half(torch.ones(2, samples))
    assert equal.tolist() == [k < (samples + 1) // 2 for k in range(samples)]


def test_the_separation_is_that_of_two_known_gaussians():
    draw = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(4000, generator=draw), 12 + 2 * torch.randn(4000, generator=draw)])
    assert separation(values) == pytest.approx(12 / 3, rel=0.03)
