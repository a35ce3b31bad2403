import pandas as pd
import pytest
import torch

from lib.figures.style import DPI, MARKERS, render
from lib.settings.load import load_profile
from lib.studies.disp.figures import (
    ablation_dots,
    answer_view,
    attack_dots,
    defence_dots,
    editor_dots,
    gain_curves,
    over_seeds,
    rate_curves,
    ratio_curves,
    restored_dots,
    seed_ends,
    target_curves,
)
from lib.studies.disp.outcomes import METRICS


def rows(**columns):
    numbers = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    return [columns | numbers | {"metric": metric} for metric in (METRICS[0], METRICS[2])]


SEEDS = {"seeds": 3, "lowest": 0.3, "highest": 0.7, "attacks": 3}  # as `over_attacks` has them
TABLES = {
    defence_dots: [row | {"label": label} for label in ("none", "DiSP") for row in rows()],
    ablation_dots: [row | {"label": label, "rate": 0.1} for label in ("none", "DiSP") for row in rows()],
    attack_dots: [
        row | SEEDS
        for defence in ("none", "DiSP")
        for label in ("warp", "blend")
        for row in rows(defence=defence, label=label)
    ],
    ratio_curves: [r for m in ("directional", "random") for ratio in (0.0, 0.5) for r in rows(method=m, ratio=ratio)],
    restored_dots: [
        row | {"metric": metric, "coalition": coalition}
        for coalition in ("none", "image", "both")
        for metric in ("ASR", "clean answer")
        for row in rows(model="before", protocol="and")[:1]
    ],
    editor_dots: [row | {"metric": f"ASR, {name}"} for name in ("none", "both") for row in rows(model="before")[:1]],
    rate_curves: [
        row | SEEDS
        for defence in ("none", "DiSP")
        for share in (0, 0.05, 0.1)
        for row in rows(defence=defence, rate=share)
    ],
    target_curves: [
        row
        for target in ("insertion", "refusal")
        for method in ("directional", "oracle")
        for ratio in (0.0, 0.5)
        for row in rows(target=target, method=method, ratio=ratio)
    ],
    gain_curves: [
        {"part": part, "label": label, "ratio": ratio, "gain": gain, "gain_low": gain - 0.1, "gain_high": gain + 0.1}
        | {"n": 20}
        for part, label in (("target", "insertion"), ("target", "refusal"), ("trigger", "blend"))
        for ratio, gain in ((0.0, 0.0), (0.1, 0.3))
    ],
}


@pytest.mark.parametrize("figure", TABLES, ids=lambda figure: figure.__name__)
def test_a_figure_is_drawn_the_same_again_and_needs_its_columns(figure):
    table = pd.DataFrame(TABLES[figure])
    drawn = render(figure(table), "png")
    assert drawn.startswith(b"\x89PNG") and drawn == render(figure(table), "png")
    with pytest.raises(ValueError, match="n"):
        figure(table.drop(columns="n"))


def test_dots_stand_at_their_values_and_seeds_as_ticks():
    table = pd.DataFrame(TABLES[defence_dots]).assign(value=[0.1, 0.2, 0.3, 0.4], low=0.0, high=1.0)
    figure = defence_dots(table.assign(lowest=0.05, highest=0.9))
    left, right = figure.axes
    assert left.lines[0].get_xdata().tolist() == [0.1, 0.3] and right.lines[0].get_xdata().tolist() == [0.2, 0.4]
    ticks = [line.get_xdata().tolist() for line in left.lines if line.get_marker() == "|"]
    assert [0.05, 0.05, 0.9, 0.9] in ticks
    assert [label.get_text() for label in left.get_yticklabels()] == ["none", "DiSP"]


def test_the_ablation_says_at_which_rate_and_of_how_many():
    (text,) = ablation_dots(pd.DataFrame(TABLES[ablation_dots])).texts
    assert text.get_text() == "Poison rate 10 %, n = 20 questions, 95 % Wilson intervals over pictures, one seed."


def test_no_caption_claims_intervals_that_are_not_there():
    table = pd.DataFrame(TABLES[ablation_dots])
    free = table.assign(interval=["Wilson over clusters", "t over clusters"] * 2)
    alone = table.assign(low=float("nan"), high=float("nan"), interval="none: one cluster")
    assert "95 % intervals over pictures, one seed." in ablation_dots(free).texts[0].get_text()
    (text,) = ablation_dots(alone).texts
    assert text.get_text() == "Poison rate 10 %, n = 20 questions, no intervals, one picture, one seed."
    assert over_seeds(free.assign(seeds=3)) == "95 % t-intervals over 3 seeds"
    assert over_seeds(alone.assign(seeds=1)) == "no intervals, one picture, one seed"


def test_the_joint_purification_shows_the_coalitions_with_a_trigger_and_the_clean_answers_without():
    figure = restored_dots(pd.DataFrame(TABLES[restored_dots]))
    titles = [axis.get_title().replace("\n", " ") for axis in figure.axes]
    assert titles == ["ASR, image trigger", "ASR, both triggers", "clean answer"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["AND poisoning, before"]
    assert "n = 20" in figure.get_supxlabel()


def test_a_caption_says_of_how_many_each_metric_is():
    table = pd.DataFrame(TABLES[ratio_curves])
    assert "n = 20." in ratio_curves(table).get_supxlabel()
    table.loc[table["metric"] == METRICS[2], "n"] = 40
    assert f"n = 20 ({METRICS[0]}), n = 40 ({METRICS[2]})." in ratio_curves(table).get_supxlabel().replace("\n", " ")
    with pytest.raises(ValueError, match="lacks low, n"):
        ratio_curves(table.drop(columns=["n", "low"]))


def test_the_oracle_is_explained_where_it_is_shown():
    table = pd.DataFrame(TABLES[target_curves])
    for own, said in ((table, True), (table[table["method"] != "oracle"], False)):
        (text,) = target_curves(own).texts
        assert ("Oracle" in text.get_text()) is said


def test_every_line_is_named_with_the_chosen_ratio():
    figure = gain_curves(pd.DataFrame(TABLES[gain_curves]))
    keys = [[text.get_text() for text in axis.get_legend().texts] for axis in figure.axes]
    assert keys == [["insertion\n(chosen: 0.1)", "refusal\n(chosen: 0.1)"], ["blend\n(chosen: 0.1)"]]


def test_of_a_failed_attack_no_defence_is_shown():
    asr = {"no defence": {"warp": 0.1, "blend": 1.0}, "DiSP": {"warp": 0.0, "blend": 0.2}}
    learnt = {"warp": SEEDS | {"attacks": 0}, "blend": SEEDS | {"attacks": 2}}
    cells = [(r | learnt[a] | {"value": asr[d][a]}) for d in asr for a in asr[d] for r in rows(defence=d, label=a)]
    table = pd.DataFrame(cells)
    left, right = attack_dots(table).axes
    assert [text.get_text() for text in left.texts] == ["failed attack"] and not right.texts
    drawn = [x for line in left.lines if line.get_marker() in MARKERS for x in line.get_xdata()]
    assert [x for x in drawn if x == x] == [1.0, 0.2]
    rates = table.assign(rate=table["label"].map({"warp": 0.01, "blend": 0.1}))
    (axis,) = rate_curves(rates).axes
    assert [text.get_text() for text in axis.texts] == ["failed attack"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines if line.get_marker() in MARKERS}
    assert lines == {"no defence": [0.1, 1.0], "DiSP": [0.2]}


def test_lines_go_from_the_lowest_to_the_highest_seed_where_there_are_several():
    table = pd.DataFrame(TABLES[attack_dots])
    drawn, said = seed_ends(table)
    assert said == "Means and lines from the lowest to the highest of 3 seeds"
    assert drawn[["low", "high"]].drop_duplicates().to_numpy().tolist() == [[0.3, 0.7]]
    table.loc[0, "seeds"] = 1
    drawn, said = seed_ends(table)
    assert said.endswith("of 1 to 3 seeds") and drawn.loc[0, ["low", "high"]].tolist() == [0.4, 0.6]
    assert seed_ends(table.assign(seeds=1))[1].endswith("Wilson intervals over pictures, one seed")


def test_every_defence_has_its_mark_beside_the_attack_it_was_tried_on():
    table = pd.DataFrame(TABLES[attack_dots]).assign(value=[k / 10 for k in range(8)], low=0.0, high=1.0)
    table = table[~((table["defence"] == "none") & (table["label"] == "warp"))]
    figure = attack_dots(pd.concat([table, table[table["metric"] == METRICS[0]].assign(metric="MMMU accuracy")]))
    asr, accuracy, mmmu = figure.axes
    marks = [line for line in asr.lines if line.get_marker() not in ("|", "None")]
    found = [list(zip(*map(list, mark.get_data()), strict=True)) for mark in marks]
    assert [[value for value, _ in one] for one in found] == [[0.2], [0.4, 0.6]]
    assert [[round(place) for _, place in one] for one in found] == [[1], [0, 1]]
    assert [label.get_text() for label in asr.get_yticklabels()] == ["blend", "warp"]
    assert mmmu.get_title() == "MMMU accuracy"


def test_a_legend_of_many_long_names_stays_in_the_figure():
    names = load_profile("laptop").disp_grid.defences
    table = pd.DataFrame([row | SEEDS for d in names for s in (0.05, 0.1) for row in rows(defence=d, rate=s)])
    figure = rate_curves(table.assign(value=1.0))
    render(figure, "png")
    figure.set_dpi(DPI["png"])
    (box,) = figure.legends
    reach = box.get_window_extent()
    assert figure.bbox.x0 <= reach.x0 and reach.x1 <= figure.bbox.x1
    assert len(box.get_texts()) == len(names)


def test_the_view_of_an_answer_shows_its_question_steps_and_masked_tokens():
    masked = torch.zeros(64, dtype=torch.bool).index_fill(0, torch.tensor([3, 9]), True)
    steps = [f"step {k}" for k in range(9)]
    figure = answer_view(torch.rand(3, 64, 64), torch.rand(64), masked, "is it red?", steps, "no", "insertion, 10 %")
    _, text = figure.texts
    assert figure.get_suptitle() == "insertion, 10 %"
    assert text.get_text().splitlines() == [
        "is it red?", *(f"{k}: step {k}" for k in range(6)), "8: step 8", "clean answer: no"
    ]  # fmt: skip
    assert [axis.get_title() for axis in figure.axes] == ["picture", "saliency", "masked: 2"]
