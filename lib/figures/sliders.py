"""One slider and a figure that follows it.

    class Masked(Slider):
        def draw(self, ratio):
            return overview(…)

    Masked("ρ", 0.3)        # the last expression of a notebook's cell
"""

from __future__ import annotations

import base64
from functools import lru_cache

import ipywidgets as widgets

from lib.figures.style import Figure, render


class Slider(widgets.VBox):
    """A share from 0 to 0.9, and the figure that a subclass's `draw` makes of it, once for each of its values.

    Where no widgets run (papermill, a web page of the notebook) the first picture stands instead.
    """

    def __init__(self, name: str, value: float):
        self._rendered = lru_cache(maxsize=None)(lambda share: render(self.draw(share), "png"))
        how = {"min": 0.0, "max": 0.9, "step": 0.02, "description": name, "continuous_update": False}
        self.slider = widgets.FloatSlider(value, **how)
        self.image = widgets.Image(value=self._rendered(value), format="png", layout={"width": "720px"})
        self.slider.observe(lambda _: self._redraw(), "value")
        super().__init__([self.slider, self.image])

    def draw(self, share: float) -> Figure:
        """The figure of that share."""
        raise NotImplementedError

    def _redraw(self) -> None:
        self.image.value = self._rendered(round(self.slider.value, 6))

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        return bundle | {"image/png": base64.b64encode(self.image.value).decode()}
