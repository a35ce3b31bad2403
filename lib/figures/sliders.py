"""One slider and a figure that follows it.

    class Masked(Slider):
        def draw(self, ratio):
            return overview(…)

    Masked("ρ", 0.3)        # the last expression of a notebook's cell
"""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as widgets

from lib.figures.followed import Followed, slider
from lib.figures.style import Figure, render


class Slider(Followed):
    """A share from 0 to 0.9, and the figure that a subclass's `draw` makes of it, once for each of its values."""

    def __init__(self, name: str, value: float):
        self._rendered = lru_cache(maxsize=None)(lambda share: render(self.draw(share), "png"))
        self.slider = slider(widgets.FloatSlider, value, 0.9, name, step=0.02)
        super().__init__([self.slider], lambda: self._rendered(round(self.slider.value, 6)))
        self.slider.observe(lambda _: self.redraw(), "value")

    def draw(self, share: float) -> Figure:
        """The figure of that share."""
        raise NotImplementedError
