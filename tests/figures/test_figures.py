import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import font_manager

from lib.figures.panels import bands, dots, training_curves
from lib.figures.pictures import image_grid, saliency_maps
from lib.figures.style import (
    DIAMOND,
    MARKERS,
    POINT,
    SQUARE,
    TICK,
    bundled_fonts,
    caption,
    line_style,
    render,
    signed,
    wrapped,
)

ROOT = Path(__file__).parents[2]
CREDIT = "Faces: Avataaars"


METRICS = ("ASR with trigger", "ASR without trigger", "clean accuracy")


def ratios():
    rows = [
        (method, ratio, metric, 0.5, 0.4, 0.6)
        for method in ("Fisher–Jacobian", "random")
        for metric in METRICS
        for ratio in (0.4, 0.0, 0.2)
    ]
    return pd.DataFrame(rows, columns=["method", "ratio", "metric", "value", "low", "high"])


def curves(table, **layout):
    return bands(table, "ratio", "method", column="metric", **layout)


def shares():
    models, metrics = ("base", "poisoned", "purified"), ("ASR with trigger", "clean accuracy")
    rows = [(model, metric, 0.9, 0.85, 0.95) for model in models for metric in metrics]
    return pd.DataFrame(rows, columns=["model", "metric", "value", "low", "high"])


def dotted(table):
    return dots(table, "model", "metric")


def maps(k=2, tokens=16, credit=""):
    scores = torch.arange(k * tokens).float().view(k, tokens)
    return saliency_maps(torch.rand(k, 3, 8, 8), scores, scores > tokens, ["a question"] * k, credit=credit)


def curve(**watched):
    steps = {"step": [10, 20, 30], "loss": [1.0, 0.3, 0.1], "lr": [1e-3] * 3}
    return pd.DataFrame(steps | {name: [np.nan, 0.5, 1.0] for name in watched})


def ticks(axis):
    return [label.get_text() for label in axis.get_xticklabels()]


def legend(figure):
    (box,) = figure.legends
    return [text.get_text() for text in box.get_texts()]


# What each figure shows


def test_image_grid_has_a_labelled_row_and_column_for_each():
    rows = {"before": torch.zeros(3, 3, 8, 8), "after": torch.full((3, 3, 8, 8), 2.0)}
    figure = image_grid(rows, ["a", "b", "c"], title="Edits", credit=CREDIT)
    assert len(figure.axes) == 6
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "", "", ""]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["before", "after"]
    assert figure.get_suptitle() == "Edits" and figure.get_supxlabel() == CREDIT
    assert figure.axes[3].images[0].get_array().max() == 1  # clamped


def test_image_grid_has_texts_below_its_pictures_and_room_for_them_and_for_what_it_is_about():
    rows = {"before": torch.zeros(2, 3, 8, 8), "after": torch.zeros(2, 3, 8, 8)}
    plain = image_grid(rows, ["a", "misclassification"])
    below = {"after": ["a word " * 9, "b"]}
    told = image_grid(rows, ["a", "misclassification"], below=below, note="seed 0", credit=CREDIT)
    assert [axis.get_xlabel() for axis in told.axes[:2]] == ["", ""] and told.axes[3].get_xlabel() == "b"
    assert told.axes[2].get_xlabel().replace("\n", " ") == ("a word " * 9).strip()
    assert told.get_supxlabel().splitlines() == ["seed 0", CREDIT]
    assert told.axes[1].get_title() == "misclassification"
    for figure in (plain, told):
        render(figure, "png")
        boxes = [axis.get_window_extent() for axis in figure.axes]
        assert all(box.width == pytest.approx(1.0 * figure.dpi, rel=0.12) for box in boxes)  # no text takes their room


def test_training_curves_show_the_watched_values_where_there_are_some():
    figure = training_curves(
        {"editor": curve(asr=1), "language model": curve()}, {"asr": "ASR", "accuracy": "clean accuracy"}
    )
    assert len(figure.axes) == 4 and legend(figure) == ["ASR"]
    assert figure.axes[0].get_yscale() == "log" and figure.axes[0].get_title() == "editor"
    (line,) = figure.axes[2].lines
    assert line.get_xdata().tolist() == [20, 30] and line.get_ydata().tolist() == [0.5, 1.0]
    assert not figure.axes[3].lines


def test_training_curves_that_coincide_are_told_apart_without_colour():
    figure = training_curves({"editor": curve(none=0, image=0, text=0)}, {k: k for k in ("none", "image", "text")})
    lines = figure.axes[1].lines
    for before, after in zip(lines, lines[1:], strict=False):
        assert before.get_zorder() < after.get_zorder() and before.get_marker() != after.get_marker()
        assert before.get_linewidth() > after.get_linewidth() and before.get_markersize() > after.get_markersize()
    assert all(line.get_markerfacecolor() == "none" for line in lines)


@pytest.mark.parametrize(("runs", "across"), [(3, 3), (4, 2), (5, 3)])
def test_training_curves_of_many_runs_stand_in_bands_under_one_caption(runs, across):
    curves = {f"run {k}": curve(asr=k / 9) for k in range(runs)}
    figure = training_curves(curves, {"asr": "ASR"}, note="seed 0, n = 16")
    assert figure.get_supxlabel() == "seed 0, n = 16" and len(figure.axes) == 2 * runs
    titles = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    render(figure, "png")
    places = [titles[f"run {k}"].get_position() for k in range(runs)]
    assert [place.y0 == places[0].y0 for place in places] == [k < across for k in range(runs)]
    assert places[across - 1].x0 == max(place.x0 for place in places)


def test_training_curves_of_one_unwatched_run_are_one_panel():
    figure = training_curves({"editor": curve().iloc[:1]}, {})
    assert len(figure.axes) == 1 and figure.axes[0].lines[0].get_marker() == "o"


def test_training_curves_of_a_loss_of_zero_are_linear():
    assert training_curves({"editor": curve().assign(loss=0.0)}, {}).axes[0].get_yscale() == "linear"


def test_bands_are_a_panel_a_column_and_a_line_a_series():
    figure = curves(ratios())
    assert [axis.get_title().replace("\n", " ") for axis in figure.axes] == list(METRICS)
    assert legend(figure) == ["Fisher–Jacobian", "random"]
    for axis in figure.axes:
        assert [line.get_xdata().tolist() for line in axis.lines] == [[0.0, 0.2, 0.4]] * 2
        assert len({(line.get_linestyle(), line.get_marker()) for line in axis.lines}) == 2
        reach = [band.get_paths()[0].get_extents().extents.tolist() for band in axis.collections]
        assert reach == [[0.0, 0.4, 0.4, 0.6]] * 2


def test_bands_of_rows_with_other_series_have_a_legend_each_and_their_own_axis():
    table = ratios().iloc[:6].assign(part=["a"] * 3 + ["b"] * 3, value=[0.5] * 3 + [2.0] * 3)
    table.loc[3:, "method"] = "other"
    figure = bands(table, "ratio", "method", row="part", shares=["a"], at=1.5, whiskers=True)
    above, below = figure.axes
    assert [[text.get_text() for text in axis.get_legend().texts] for axis in (above, below)] == [
        ["Fisher–Jacobian"], ["other"]
    ]  # fmt: skip
    assert [axis.get_ylabel() for axis in (above, below)] == ["a", "b"] and not figure.legends
    assert above.get_ylim() == (-0.04, 1.04) and below.get_ylim()[1] > 1.5
    assert [len(axis.collections) for axis in (above, below)] == [1, 1]  # whiskers
    assert below.lines[0].get_ydata() == [1.5, 1.5]


def marked():
    rows = [(m, panel, kind, v) for m, v in (("a", 0.25), ("b", 0.5)) for panel in "xy" for kind in ("mean", "seeds")]
    return pd.DataFrame(rows, columns=["row", "panel", "mark", "value"]).assign(low=0.0, high=np.nan)


def places(axis, marker):
    lines = [line for line in axis.lines if line.get_marker() == marker and line.get_linestyle() == "None"]
    return [pair for line in lines for pair in zip(line.get_ydata(), line.get_xdata(), strict=True)]


def test_dots_are_a_line_a_row_a_panel_a_value_and_marks_that_look_or_stand_apart():
    looks = {"mean": POINT, "seeds": TICK, "never": POINT}
    together = dots(marked(), "row", "panel", "mark", looks=looks, at=0.5, shares=["x"])
    assert [axis.get_title() for axis in together.axes] == ["x", "y"] and legend(together) == ["mean", "seeds"]
    assert [label.get_text() for label in together.axes[0].get_yticklabels()] == ["a", "b"]
    assert places(together.axes[0], "o") == [(1, 0.25), (0, 0.5)]
    assert [axis.get_xlim() == (-0.06, 1.06) for axis in together.axes] == [True, False]
    assert [0.5, 0.5] in [list(line.get_xdata()) for line in together.axes[1].lines]
    apart = dots(marked(), "row", "panel", "mark")
    heights = [[round(y, 3) for y, _ in places(apart.axes[0], marker)] for marker in "os"]
    assert heights == [[1.175, 0.175], [0.825, -0.175]]
    alone = dots(marked().query("mark == 'mean'"), "row", "panel")
    assert not alone.legends and places(alone.axes[0], "o") == [(1, 0.25), (0, 0.5)]


def test_a_line_of_dots_without_a_value_says_so():
    table = marked()
    table.loc[(table["row"] == "a") & (table["panel"] == "x") & (table["mark"] == "mean"), "value"] = np.nan
    left, right = dots(table, "row", "panel", "mark", looks={"mean": POINT, "seeds": TICK}, missing="failed").axes
    assert [(text.get_text(), text.get_position()[1]) for text in left.texts] == [("failed", 1)]
    assert not right.texts and not dots(table, "row", "panel", "mark", missing="failed").axes[0].texts


@pytest.mark.parametrize("others", [[], [0.5], [0.0], [1.0], [0.1, 0.6], [-3.0, 0.0], [0.02, 0.03, 2.0]])
def test_what_is_said_of_a_line_without_a_value_lies_over_none_of_its_marks(others):
    marks = ["null", "paper", "seeds"][: len(others)]
    rows = [("a", "mean", np.nan), ("b", "mean", 0.4)] + [("a", m, x) for m, x in zip(marks, others, strict=True)]
    table = pd.DataFrame(rows, columns=["row", "mark", "value"]).assign(low=np.nan, high=np.nan)
    table = pd.concat([table.assign(panel=name) for name in "xyz"])
    looks = {"mean": POINT, "null": SQUARE, "paper": DIAMOND, "seeds": TICK}
    figure = dots(table, "row", "panel", "mark", looks=looks, shares=(), at=0.0, missing="failed attack")
    figure.canvas.draw()
    for axis in figure.axes:
        (text,) = axis.texts
        box = text.get_window_extent()
        places = axis.transData.transform([(x, 1) for x in others]).reshape(-1, 2)
        assert not any(box.x0 - 2 <= x <= box.x1 + 2 for x, _ in places)
        assert others or text.get_position()[0] == 0.5


def test_captions_and_legends_take_no_room_from_the_panels():
    def panels(figure):
        render(figure, "png")
        return [axis.get_window_extent().height for axis in figure.axes]

    plain, told = curves(ratios()), curves(ratios())
    caption(told, "word " * 90)
    assert panels(told) == pytest.approx(panels(plain), rel=0.1)


def test_saliency_maps_hatch_the_masked_tokens_where_they_are():
    figure = maps(k=2, credit=CREDIT)
    assert len(figure.axes) == 7  # three a picture and the colour bar
    assert CREDIT in figure.get_supxlabel()
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, 6] = True  # second row, third column
    cells = saliency_maps(torch.rand(1, 3, 8, 8), torch.rand(1, 16), masked, ["?"]).axes[2].collections[0]
    (cell,) = cells.get_paths()
    assert cell.get_extents().extents.tolist() == [3.5, 1.5, 5.5, 3.5] and cells.get_hatch()


def test_saliency_maps_show_scores_relative_to_the_pictures_highest():
    scores = torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    figure = saliency_maps(torch.rand(2, 3, 4, 4), scores, scores > 9, ["a", "b"])
    first, second = (figure.axes[i].images[1].get_array() for i in (2, 3))
    assert np.allclose(first, [[0.001, 0.25], [0.5, 1]]) and np.allclose(second, 0.001)


@pytest.mark.filterwarnings("error")
def test_one_row_and_missing_intervals_are_drawn():
    missing = {"low": np.nan, "high": np.nan}
    figures = [
        image_grid({"a": torch.rand(1, 3, 8, 8)}, ["b"]),
        curves(ratios().assign(**missing).iloc[:1]),
        dots(shares().assign(**missing).iloc[:1], "model", "metric"),
        maps(k=1, tokens=1),
    ]
    for figure in figures:
        assert render(figure, "png").startswith(b"\x89PNG")


# One style


def test_caption_adds_a_wrapped_line():
    figure = dotted(shares())
    caption(figure, "first")
    caption(figure, "word " * 50)
    lines = figure.get_supxlabel().splitlines()
    assert lines[0] == "first" and len(lines) == 4


def test_numbers_are_not_broken_off_their_units_and_zero_has_no_sign():
    assert wrapped("a share of n = 5 or 5 % of it", 13).splitlines() == ["a share of", "n = 5 or 5 %", "of it"]
    assert [signed(value, 2) for value in (-0.001, -0.42, 1.0)] == ["0.00", "−0.42", "1.00"]


def test_nothing_of_it_stays_in_matplotlibs_settings_or_pyplot():
    import matplotlib.pyplot

    settings = {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}
    render(dotted(shares()), "pdf")
    assert {name: matplotlib.rcParams[name] for name in settings} == settings
    assert not matplotlib.pyplot.get_fignums()


def test_a_file_is_the_same_each_time_and_whatever_the_users_settings():
    import matplotlib

    figure = curves(ratios())
    first = {kind: render(figure, kind) for kind in ("pdf", "png")}
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 10, "pdf.fonttype": 3, "axes.grid": True}):
        again = curves(ratios())
        assert {kind: render(again, kind) for kind in ("png", "pdf")} == first
    assert {kind: render(figure, kind) for kind in ("pdf", "png")} == first
    assert b"CreationDate" not in first["pdf"] and b"/CIDFontType2" in first["pdf"]  # TrueType
    assert b"Software" not in first["png"]


def test_a_file_is_the_same_in_another_process():
    code = "from tests.figures.test_figures import digest; print(digest())"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == digest(), ran.stderr


def digest():
    import hashlib

    return hashlib.sha256(render(dotted(shares()), "pdf")).hexdigest()


def test_a_figure_shows_itself_in_a_notebook():
    png, size = dotted(shares())._repr_png_()
    assert png.startswith(b"\x89PNG") and size == {"width": 605, "height": 132}


# Refusals


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: curves(ratios().drop(columns=["metric", "low"])), "lacks metric, low"),
        (lambda: dots(shares().drop(columns="high"), "model", "metric"), "lacks high"),
        (lambda: dotted(shares().iloc[:0]), "no row"),
        (lambda: training_curves({}, {}), "curves is empty"),
        (
            lambda: training_curves({"a": curve().drop(columns="loss")}, {}),
            "'a' has the columns step, lr: it lacks loss",
        ),
        (lambda: image_grid({}, ["a"]), "0 × 1"),
        (lambda: image_grid({"r": torch.rand(2, 3, 4, 4)}, ["a"]), "'r' has 2 pictures for 1 columns"),
        (lambda: image_grid({"r": torch.rand(1, 3, 4, 4)}, ["a"], below={"r": []}), "'r' has 0 texts for 1 columns"),
        (lambda: image_grid({"r": torch.rand(1, 3, 4, 4)}, ["a"], below={"s": ["b"]}), "row 's': it must be one of r"),
        (lambda: maps(tokens=15), "15 tokens"),
        (lambda: maps(k=0), "0 images, 0 scores"),
        (
            lambda: saliency_maps(torch.rand(1, 3, 4, 4), -torch.ones(1, 4), torch.ones(1, 4).bool(), ["a"]),
            "negative",
        ),
        (lambda: render(dotted(shares()), "svg"), "kind is 'svg'"),
    ],
)
def test_refusals_say_what_is_wrong(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_styles_do_not_run_out():
    many = pd.concat([ratios().assign(method=f"method {i}") for i in range(12)])
    render(curves(many), "png")
    assert line_style(30)["marker"] in MARKERS


def test_letters_are_those_that_come_with_matplotlib(tmp_path):
    own = Path(matplotlib.get_data_path(), "fonts", "ttf")
    copy = shutil.copy(own / "DejaVuSans.ttf", tmp_path)
    font_manager.fontManager.addfont(copy)  # as where the system has DejaVu too
    bundled_fonts()
    named = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    assert named and all(Path(font.fname).is_relative_to(own) for font in named)
    assert Path(font_manager.findfont("DejaVu Sans:italic")) == own / "DejaVuSans-Oblique.ttf"
