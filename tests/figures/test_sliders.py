import base64

from lib.figures.sliders import Slider


def test_the_picture_follows_the_slider_and_each_value_is_drawn_once():
    asked = []
    shown = Slider(lambda ratio: asked.append(ratio) or f"png {ratio}".encode(), "ρ", 0.3)
    assert shown.image.value == b"png 0.3" and shown.slider.description == "ρ"
    shown.slider.value = 0.5
    assert shown.image.value == b"png 0.5"
    shown.slider.value = 0.3
    assert shown.image.value == b"png 0.3" and asked == [0.3, 0.5]


def test_without_widgets_the_first_picture_stands_there():
    bundle = Slider(lambda ratio: b"first", "ρ", 0.0)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == b"first"
    assert "application/vnd.jupyter.widget-view+json" in bundle
