import base64

from lib.figures.sliders import Slider
from lib.figures.style import Figure, render


class Titled(Slider):
    """A figure that is its title."""

    def __init__(self, name, value):
        self.asked = []
        super().__init__(name, value)

    def draw(self, share):
        self.asked.append(share)
        return titled(share)


def titled(share):
    figure = Figure(figsize=(1, 1))
    figure.suptitle(f"{share:g}")
    return figure


def test_the_picture_follows_the_slider_and_each_value_is_drawn_once():
    shown = Titled("ρ", 0.3)
    first, second = (render(titled(share), "png") for share in (0.3, 0.5))
    assert shown.image.value == first != second and shown.slider.description == "ρ"
    shown.slider.value = 0.5
    assert shown.image.value == second
    shown.slider.value = 0.3
    assert shown.image.value == first and shown.asked == [0.3, 0.5]


def test_without_widgets_the_first_picture_stands_there():
    bundle = Titled("ρ", 0.0)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == render(titled(0.0), "png")
    assert "application/vnd.jupyter.widget-view+json" in bundle
