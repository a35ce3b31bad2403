"""The area under the ROC curve with its interval."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lib.metrics import roc
from lib.metrics.roc import auroc


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_area_is_the_share_of_pairs_in_order():
    score, poisoned = (noise(60) * 8).round(), noise(60, seed=1) < 0.3
    pairs = score[poisoned][:, None] - score[~poisoned]
    found = auroc(score, poisoned)
    assert found["auroc"] == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))
    assert found["low"] < found["auroc"] < found["high"] and found["n"] == 60
    assert found["n_poisoned"] == int(poisoned.sum()) and found == auroc(score, poisoned)
    many = auroc(score.repeat(9), poisoned.repeat(9))
    assert 0.4 * (found["high"] - found["low"]) > many["high"] - many["low"] > 0.25 * (found["high"] - found["low"])
    perfect = auroc(poisoned.float(), poisoned)
    assert [perfect[k] for k in ("auroc", "low", "high", "average_precision")] == [1, 1, 1, 1]
    assert auroc(-poisoned.float(), poisoned)["auroc"] == 0 and auroc(poisoned * 0.0, poisoned)["auroc"] == 0.5
    assert auroc(poisoned * 0.0, poisoned)["average_precision"] == pytest.approx(found["n_poisoned"] / 60)


def test_resamples_have_the_area_that_scikit_learn_gives_them():
    values, truth = (noise(30) * 6).round().numpy(), (noise(30, seed=1) < 0.2).numpy()
    areas = roc._resampled_areas(values, truth, seed=3, resamples=40)
    counts = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), 40)
    expected = [roc_auc_score(truth, values, sample_weight=c) for c in counts if c[truth].sum()]
    assert areas == pytest.approx(expected) and len(set(areas)) > 10


@pytest.mark.parametrize("alone", [True, False])
def test_one_sample_of_a_kind_has_an_area_and_no_interval(alone):
    found = auroc(torch.tensor([0.9, 0.1, 0.2]), torch.tensor([alone, not alone, not alone]))
    assert found["auroc"] == (1 if alone else 0) and np.isnan([found["low"], found["high"]]).all()
    two = auroc(torch.tensor([0.9, 0.15, 0.1, 0.2]), torch.tensor([alone, alone, not alone, not alone]))
    assert two["low"] < two["auroc"] < two["high"]


@pytest.mark.parametrize(
    ("score", "poisoned", "message"),
    [
        ([0.0, 1.0], [True, True], "poisoned holds 2 of 2"),
        ([0.0, 1.0], [False, False], "poisoned holds 0 of 2"),
        ([0.0, float("inf")], [True, False], "score holds NaN or infinity"),
    ],
)
def test_what_has_no_area_is_refused(score, poisoned, message):
    with pytest.raises(ValueError, match=message):
        auroc(torch.tensor(score), torch.tensor(poisoned))
