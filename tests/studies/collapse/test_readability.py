import numpy as np
import pandas as pd
import pytest

from lib.figures.style import render
from lib.studies.collapse import readability
from lib.studies.collapse.readability import dealt, fit_law, law, law_conclusion, law_figure, law_table, within


def cells(count=24, slope=1.5, middle=0.4, noise=0.0, informative="given"):
    """Cells that follow the law by one predictor, while the other is noise."""
    draw = np.random.default_rng(3)
    x, other = draw.normal(0, 1.5, (2, count))
    outcome = np.clip(law(x, middle, slope) + draw.normal(0, noise, count), -1, 1)
    table = pd.DataFrame({"label": [f"cell {k}" for k in range(count)], "outcome": outcome})
    names = [f"predictor_{name}" for name in readability.PREDICTORS]
    known = f"predictor_{informative}"
    table = table.assign(**{name: x if name == known else other for name in names})
    encoders = ["pre-trained", "edits alone"] * (count // 2)
    return table.assign(fitted=dealt(count, 0), part=["pair"] + ["cell"] * (count - 1), encoder=encoders)


def test_two_thirds_are_fitted_and_the_same_ones_each_time():
    assert sum(dealt(24, 0)) == 16 and dealt(24, 0) == dealt(24, 0) != dealt(24, 1)
    assert dealt(0, 0) == [] and sum(dealt(1, 0)) == 1


def test_the_fit_finds_the_law_that_made_the_cells():
    x = np.linspace(-3, 3, 9)
    assert fit_law(x, law(x, 0.7, 1.3)) == pytest.approx((0.7, 1.3), abs=1e-4)
    with pytest.raises(ValueError, match="x has 2 cells"):
        fit_law(x[:2], x[:2])


def test_the_law_is_judged_on_cells_that_it_has_not_seen():
    table = cells(noise=0.05)
    laws = law_table(table).set_index("predictor")
    given, told = (laws.loc[title] for title in readability.PREDICTORS.values())
    assert given["fitted"] == 16 and given["left_out"] == 8
    assert given["rms"] < 0.15 < given["rms_of_mean"] and given["winner_right"] == 1 and given["spearman"] > 0.9
    assert given["slope_low"] <= given["slope"] <= given["slope_high"] and given["slope_low"] > 0.8
    assert told["rms"] > 0.4
    rest = table[~table["fitted"]]
    told = np.tanh(given["slope"] * (rest["predictor_given"] - given["middle"]))
    expected = np.sqrt(((told - rest["outcome"]) ** 2).mean())
    assert given["rms"] == pytest.approx(expected)


def test_changing_a_cell_left_out_changes_the_judgement_and_not_the_law():
    table = cells()
    other = table.copy()
    other.loc[other.index[~other["fitted"]][0], "outcome"] = -1.0
    before, after = law_table(table), law_table(other)
    assert before[["middle", "slope"]].equals(after[["middle", "slope"]])
    assert after["rms"].iloc[0] > before["rms"].iloc[0]


def test_failed_attacks_are_in_neither_part():
    table = cells()
    table.loc[[0, 1, 2], "outcome"] = np.nan
    assert law_table(table)[["fitted", "left_out"]].sum(axis=1).eq(21).all()
    assert law_conclusion(table, law_table(table)).startswith("21 of 24 cells are attacks.")


def test_the_conclusion_says_where_the_law_is_no_better():
    table = cells(informative="told")
    laws = law_table(table).assign(rms=[0.5, 0.1], rms_of_mean=[0.5, 0.5])
    given, told = law_conclusion(table, laws).split("By what the U-Net predicts")
    assert "Within the pre-trained encoder the rank correlation with what the U-Net predicts is 1.00." in told
    assert "no better" in given and "is better" in told


def test_the_figure_shows_every_cell_once_a_panel_and_rings_the_papers():
    table = cells()
    figure = law_figure(table, law_table(table), "note")
    for axis in figure.axes:
        points = [line for line in axis.lines if line.get_linestyle() == "None" and line.get_markersize() < 9]
        assert sum(len(line.get_xdata()) for line in points) == len(table)
        (ring,) = [line for line in axis.lines if line.get_markersize() == 9]
        assert ring.get_ydata() == [table["outcome"].iloc[0]]
    assert len(render(figure, "png")) > 1000


def test_of_too_few_attacks_there_is_no_law():
    table = cells()
    table["outcome"] = np.nan
    laws = law_table(table)
    assert laws.empty and list(laws) == list(law_table(cells()))
    assert law_conclusion(table, laws) == "0 of 24 cells are attacks. They are too few for a law."
    assert len(render(law_figure(table, laws), "png")) > 1000


def test_within_an_encoder_ranks_are_of_its_cells_alone():
    table = cells()
    table.loc[table["encoder"] == "edits alone", "outcome"] *= -1
    ranks = within(table).set_index(["predictor", "encoder"])
    title = readability.PREDICTORS["given"]
    assert ranks.loc[(title, "pre-trained"), "spearman"] == pytest.approx(1)
    assert ranks.loc[(title, "edits alone"), "spearman"] == pytest.approx(-1)
    assert set(ranks["n"]) == {12}
    assert within(table.assign(outcome=np.nan))["spearman"].isna().all()
