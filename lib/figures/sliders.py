"""One slider and a picture that follows it.

    Slider(lambda ratio: render(figure_of(ratio), "png"), "ρ", 0.3)     # the last expression of a notebook's cell
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import lru_cache

import ipywidgets as widgets


class Slider(widgets.VBox):
    """A share from 0 to 0.9, and what `draw` makes of it as PNG, once for each of its values.

    Where no widgets run (papermill, a web page of the notebook) the first picture stands instead.
    """

    def __init__(self, draw: Callable[[float], bytes], name: str, value: float):
        self._drawn = lru_cache(maxsize=None)(draw)
        how = {"min": 0.0, "max": 0.9, "step": 0.02, "description": name, "continuous_update": False}
        self.slider = widgets.FloatSlider(value, **how)
        self.image = widgets.Image(value=self._drawn(value), format="png", layout={"width": "720px"})
        self.slider.observe(lambda _: self._redraw(), "value")
        super().__init__([self.slider, self.image])

    def _redraw(self) -> None:
        self.image.value = self._drawn(round(self.slider.value, 6))

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        return bundle | {"image/png": base64.b64encode(self.image.value).decode()}
