import io
import sys

import ipywidgets as widgets
import pytest
from tqdm.auto import tqdm

from lib.figures.bars import PLAIN, hidden
from lib.figures.followed import Followed, slider


def followed(draw):
    control = slider(widgets.IntSlider, 0, 9, "k")
    shown = Followed([control], lambda: draw(control.value))
    control.observe(lambda _: shown.redraw(), "value")
    return control, shown


def test_an_error_stands_in_the_pictures_place_until_there_is_one_again():
    def draw(k):
        if k == 1:
            raise LookupError("no <model> of 1")
        return b"picture %d" % k

    control, shown = followed(draw)
    control.value = 1
    assert shown.image.value == b"" and shown.image.layout.display == "none"
    assert "LookupError: no &lt;model&gt; of 1" in shown.said.value and shown.said.layout.display is None
    control.value = 2
    assert shown.image.value == b"picture 2" and shown.image.layout.display is None
    assert shown.said.layout.display == "none"


def test_the_first_pictures_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        followed(lambda k: 1 // k)


def test_a_control_that_is_moved_by_drawing_draws_once():
    drawn = []

    def draw(k):
        drawn.append(k)
        if k:
            control.max = 3
            k = control.value
        return b"%d" % k

    control, shown = followed(draw)
    control.value = 7
    assert drawn == [0, 7] and control.value == 3 and shown.image.value == b"3"


def test_no_bars_are_shown_while_a_picture_is_drawn_again(monkeypatch):
    def draw(k):
        return b"%d" % sum(tqdm(range(k), disable=False, leave=True))

    monkeypatch.setattr(tqdm, "__init__", PLAIN)  # whatever a report before this test has told all bars
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    control, shown = followed(draw)
    said.truncate(0)
    control.value = 4
    assert shown.image.value == b"6" and not said.getvalue().strip("\0")
    with hidden():
        list(tqdm(range(3)))
    assert not said.getvalue().strip("\0")
    list(tqdm(range(3)))
    assert "3/3" in said.getvalue()
