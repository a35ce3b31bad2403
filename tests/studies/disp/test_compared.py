import pandas as pd
import pytest
from attacked import outcome, strength

from lib.studies.disp.compared import beside, over_attacks
from lib.studies.disp.outcomes import METRICS


def test_a_defence_is_judged_on_the_seeds_whose_attack_succeeded():
    found = {("warp", "no defence"): (0.95, 0.2, 1.0), ("warp", "DiSP"): (0.1, 0.0, 0.3)}
    found |= {("blend", "no defence"): (0.1, 0.2, 0.3), ("blend", "DiSP"): (0.1, 0.2, 0.3)}
    rows = [
        outcome(value, label=label, defence=defence, seed=seed)
        for (label, defence), values in found.items()
        for seed, value in enumerate(values)
    ]
    failed = {("warp", 1), *(("blend", seed) for seed in range(3))}
    table = over_attacks(pd.DataFrame(rows), strength(rows, failed)).set_index(["label", "defence"])
    assert table["value"].to_dict() == pytest.approx(
        {("warp", "no defence"): 2.15 / 3, ("warp", "DiSP"): 0.2, ("blend", "no defence"): 0.2, ("blend", "DiSP"): 0.2}
    )
    assert table["seeds"].tolist() == [3, 2, 3, 3] and table["attacks"].tolist() == [2, 2, 0, 0]
    plain = pd.DataFrame([outcome(0.0, label="0", rate=0.0, defence="no defence", seed=0)])
    assert over_attacks(plain, strength(rows))["attacks"].tolist() == [0]  # no attack at all


def test_a_difference_is_of_the_same_seed_and_of_attacks_that_succeeded():
    found = {"no defence": (1.0, 1.0, 1.0, 0.1), "DiSP": (0.3, 0.2, 0.1, 0.9), "BYE": (0.1, 0.1, 0.1, 0.0)}
    rows = [
        outcome(value, label="warp", defence=defence, seed=seed, metric=metric)
        for defence, values in found.items()
        for seed, value in enumerate(values)
        for metric in METRICS[:2]
    ]
    table = beside(pd.DataFrame(rows), strength(rows, {("warp", 3)}))
    assert table["metric"].tolist() == list(METRICS[:2]) and table["defence"].tolist() == ["BYE"] * 2
    row = table.iloc[0]
    half = 4.30265 * 0.1 / 3**0.5
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.1, 0.1 - half, 0.1 + half], rel=1e-5)
    assert (row["n"], row["interval"]) == (3, "t over seeds") and row["lowest"] == pytest.approx(0)
    lacking = pd.DataFrame([row for row in rows if (row["defence"], row["seed"]) != ("BYE", 0)])
    assert beside(lacking, strength(rows, {("warp", 3)}))["n"].tolist() == [2, 2]
    assert beside(pd.DataFrame(rows), strength(rows, {("warp", seed) for seed in range(4)})).empty


def test_rows_of_several_labels_can_be_one_attack():
    values = {("seed 0", "DiSP"): 0.5, ("seed 1", "DiSP"): 0.7, ("seed 0", "BYE"): 0.4, ("seed 1", "BYE"): 0.4}
    rows = [outcome(v, label=label, seed=int(label[-1]), defence=defence) for (label, defence), v in values.items()]
    (row,) = beside(pd.DataFrame(rows), strength(rows), by=("part",)).to_dict("records")
    assert row["value"] == pytest.approx(0.2) and row["n"] == 2
