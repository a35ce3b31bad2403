from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from lib.figures.style import DIAMOND, MARKERS, POINT, SQUARE, TICK, render
from lib.poisoning.catalogue import image_trigger
from lib.studies.cases import Attack
from lib.studies.collapse import figures
from lib.studies.data import edit_data


def numbers(names, rows=3):
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"label": [f"attack {k}" for k in range(rows)], "n": 96})
    for name in names:
        value = draw.random(rows)
        table = table.assign(**{name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1})
    return table


def dynamics():
    return pd.concat(
        pd.DataFrame({"label": label, "seed": seed, "step": [100, 200], "n": 32})
        .assign(**{f"asr_{name}": [0.0, 0.5 + seed / 10] for name in figures.SIGNS})
        .assign(**{name: [0.1 + seed / 10, -0.2] for name in figures.SYMBOLS})
        for label in ("the text wins", "the image wins")
        for seed in (0, 1)
    )


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def marks(axis, style):
    """Places and values of all marks of that style in an axis."""
    look = style["marker"], style["markersize"]
    lines = [line for line in axis.lines if (line.get_marker(), line.get_markersize()) == look]
    return [pair for line in lines for pair in zip(line.get_ydata(), line.get_xdata(), strict=True)]


def test_the_forest_shows_every_attack_its_interval_and_the_papers_value():
    table = numbers(figures.SYMBOLS).assign(paper_cti=[np.nan, -0.5, np.nan])
    figure = figures.forest(table)
    assert [axis.get_title() for axis in figure.axes] == list(figures.SYMBOLS.values())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == table["label"].tolist()
    axis = figure.axes[2]
    assert marks(axis, DIAMOND) == [(1, -0.5)]
    (bars,) = axis.collections
    reach = np.array([segment[:, 0] for segment in bars.get_segments()])
    np.testing.assert_allclose(reach, table[["cti_low", "cti_high"]])
    assert [text.get_text() for text in figure.legends[0].texts] == ["this run", "the paper, 5 %"]
    assert len(render(figure, "png")) > 1000


def test_the_forest_shows_seeds_the_null_and_what_failed():
    shown = {"phi_image": "image", "asr_both": "both"}
    table = numbers(shown).assign(null_phi_image=[0.1, 0.2, 0.3])
    table.loc[1, figures.ends(["phi_image"])] = np.nan
    seeds = pd.DataFrame({"label": ["attack 0", "attack 0", "attack 1"], "asr_both": [1.0, 0.5, 0.25]})
    seeds["phi_image"] = pd.Series([0.5, 0.75, None], dtype=object)
    figure = figures.forest(table, shown, seeds)
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["image", "both"]
    assert marks(left, TICK) == [(2, 0.5), (2, 0.75)]
    assert marks(right, TICK) == [(2, 1.0), (2, 0.5), (1, 0.25)]
    assert marks(left, SQUARE) == [(2, 0.1), (1, 0.2), (0, 0.3)] and not marks(right, SQUARE)
    ((words,), none) = ([(text.get_text(), text.get_position()[1]) for text in axis.texts] for axis in (left, right))
    assert words == ("failed attack", 1) and not none
    assert [text.get_text() for text in figure.legends[0].texts] == ["this run", "its seeds", "unpoisoned (null)"]
    assert len(render(figure, "png")) > 1000


def test_every_seed_is_labelled_as_its_configuration():
    keys = [("pair", "white-box", "or"), ("pair", "white-box", "and"), ("control", "white-box", "or")]
    table = pd.DataFrame(keys, columns=["part", "name", "protocol"]).assign(label=["a", "b", "c"])
    table.loc[2, "name"] = "control"
    rows = pd.DataFrame([*keys, keys[2], keys[0]], columns=["part", "label", "protocol"])
    assert figures.labelled(rows, table)["label"].tolist() == ["a", "b", "c", "c", "a"]


@pytest.mark.usefixtures("untyped")
def test_inputs_are_marked_by_the_attacks_own_trigger(tmp_path):
    run, triples = tiny.run(tmp_path, collapse={"trigger_position": [0.0, 0.5]}), pd.DataFrame({"source": [7, 3]})
    source = edit_data(run).pictures(torch.tensor([7, 3]))
    shown = {}
    for size in (None, 0.5):
        settings = {"image_trigger": "white-box", "text_trigger": "mignneko"} | ({"trigger_size": size} if size else {})
        attack = Attack("size", "white-box", "and", 0, settings)
        shown[size] = figures.marked(run, SimpleNamespace(triples=triples), attack)
        assert torch.equal(shown[size], image_trigger("white-box", size, position=(0.0, 0.5))(source))
    changed = {size: (pictures != source).any(1).sum() for size, pictures in shown.items()}
    assert 0 < changed[None] < changed[0.5] < 2 * 64 * 64


def test_one_seed_claims_no_interval():
    table = pd.DataFrame({"seeds": [3, 3], "attacks": [1, 0]})
    assert figures.over(table) == "Means and 95 % t-intervals over seeds"
    assert figures.over(table, "attacks") == "One seed, no intervals"
    two = figures.over(table.assign(attacks=[2, 0]), "attacks")
    assert two == "Means and 95 % t-intervals over the seeds that are attacks"
    alone = games().assign(low=np.nan, high=np.nan)
    assert "intervals over pictures" in figures.mdlm_forest(games()).get_supxlabel()
    assert "no intervals, as there is but one" in figures.mdlm_forest(alone).get_supxlabel().replace("\n", " ")


def test_dynamics_have_a_column_an_attack_with_means_and_bands_over_seeds():
    figure = figures.dynamics(dynamics())
    assert [axis.get_title() for axis in figure.axes[:2]] == ["the text wins", "the image wins"]
    lines = [line for line in figure.axes[0].lines if line.get_marker() in MARKERS]
    assert [line.get_xdata().tolist() for line in lines] == [[100, 200]] * 4
    keys = [[text.get_text() for text in axis.get_legend().texts] for axis in (figure.axes[1], figure.axes[3])]
    assert keys == [list(figures.ASR.values()), list(figures.SYMBOLS.values())]
    drawn = [list(line.get_ydata()) for line in figure.axes[2].lines]
    assert any(line == pytest.approx([0.15, -0.2]) for line in drawn)
    (band, *_) = figure.axes[2].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((-0.2, 0.2))
    note = figure.get_supxlabel()
    assert "n = 32" in note and "2 seeds" in note.replace("\n", " ") and len(render(figure, "png")) > 1000


REMEDIES = ("asr_both", "cti", "asr_image", "asr_text", "fidelity")


def test_remedies_show_the_larger_false_activation_and_what_has_no_cti():
    table = numbers(REMEDIES).assign(null_cti=0.5, null_fidelity=0.02)
    figure = figures.remedies(table)
    both, cti, alone, rms = ([value for _, value in marks(axis, POINT)] for axis in figure.axes)
    assert rms == table["fidelity"].tolist() and (2, 0.02) in marks(figure.axes[3], SQUARE)
    assert both == table["asr_both"].tolist() and cti == table["cti"].tolist() and not texts(figure)
    assert alone == table[["asr_image", "asr_text"]].max(axis=1).tolist()
    assert len(render(figure, "png")) > 1000
    failed = table.astype({name: object for name in figures.ends(["cti"])})
    failed.loc[0, figures.ends(["cti"])] = None
    figure = figures.remedies(failed)
    cti = [value for _, value in marks(figure.axes[1], POINT)]
    assert np.isnan(cti[0]) and cti[1:] == table["cti"].tolist()[1:] and texts(figure) == ["failed attack"]


def games():
    values = [(name, k / 10, k / 10 - 0.05, k / 10 + 0.05) for k, name in enumerate(figures.SYMBOLS)]
    table = pd.DataFrame(values, columns=["quantity", "value", "low", "high"])
    games = pd.concat([table.assign(game="attack success"), table.assign(game="log-probability", value=9.0)])
    return games.assign(protocol="and", n=500)


def areas():
    rows = [(t, s, c, a, a - 0.1, a + 0.1, 100, 9) for t in ("boat", "negative") for s, c, a in SCORED]
    return pd.DataFrame(rows, columns=["target", "score", "coalition", "auroc", "low", "high", "n", "n_poisoned"])


SCORED = (("phi_text", "any", 0.2), ("phi_text", "image", 0.9), ("low_loss", "any", 0.7))


def test_the_mdlms_games_have_a_panel_and_a_unit_each():
    figure = figures.mdlm_forest(games())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["AND"]
    assert [axis.get_title() for axis in figure.axes] == ["attack success (share)", "log-probability (nats)"]
    points = [[line.get_xdata()[0] for line in axis.lines if line.get_marker() in MARKERS] for axis in figure.axes]
    assert points == [[0, 0.1, 0.2], [9, 9, 9]]
    assert "n = 500" in figure.get_supxlabel() and len(render(figure, "png")) > 1000


def test_detection_shows_every_score_over_all_poisoned_samples():
    figure = figures.detection_dots(areas())
    assert [axis.get_title() for axis in figure.axes] == ["target: boat", "target: negative"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"$\phi_T$", "low loss"]
    assert all(list(axis.lines[0].get_xdata()) == [0.2, 0.7] for axis in figure.axes)
    assert "9 poisoned of 100" in figure.get_supxlabel() and len(render(figure, "png")) > 1000


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (figures.mdlm_forest, games(), "game"),
        (figures.detection_dots, areas(), "auroc"),
        (figures.forest, numbers(figures.SYMBOLS), "cti_low"),
        (figures.dynamics, dynamics(), "asr_both"),
        (figures.remedies, numbers(REMEDIES).assign(null_fidelity=0.0), "asr_text_high"),
    ],
)
def test_a_table_that_lacks_a_column_is_refused(draw, table, column):
    with pytest.raises(ValueError, match=f"it lacks {column}"):
        draw(table.drop(columns=column))
