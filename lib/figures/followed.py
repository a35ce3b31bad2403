"""A picture that follows the controls above it, or what keeps it from being drawn: the frame of sliders and menus."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence

import ipywidgets as widgets

from lib.figures.bars import hidden

WIDTH = "720px"  # of the picture and of a slider; in a narrow window, all of that


class Followed(widgets.VBox):
    """Controls, and the picture (PNG) that `drawn()` gives for what they say, anew whenever `redraw` is called.

    Where `drawn` raises, its words stand in the picture's place, so that none stays which is not the controls'; the
    first picture's error is raised. Where no widgets run (papermill, a web page of the notebook) the picture stands
    alone.
    """

    def __init__(self, controls: Sequence[widgets.Widget], drawn: Callable[[], bytes]):
        self._drawn, self._drawing = drawn, False
        self.image = widgets.Image(value=drawn(), format="png", layout={"width": WIDTH, "max_width": "99%"})
        self.said = widgets.HTML(layout={"display": "none"})
        super().__init__([*controls, self.said, self.image])

    def redraw(self) -> None:
        """The picture of what the controls say now. A control that `drawn` itself moves draws nothing more."""
        if self._drawing:
            return
        self._drawing, said = True, ""
        try:
            with hidden():
                self.image.value = self._drawn()
        except Exception as error:  # whatever it is: the picture must not stay
            self.image.value, said = b"", f"No picture. {type(error).__name__}: {error}"
        finally:
            self._drawing = False
        self.said.value = f"<pre style='white-space: pre-wrap'>{html.escape(said)}</pre>"
        self.said.layout.display, self.image.layout.display = (None, "none") if said else ("none", None)

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        return bundle | {"image/png": base64.b64encode(self.image.value).decode()}


def slider(kind: type[widgets.Widget], value: float | int, most: float | int, name: str, **options) -> widgets.Widget:
    """From 0 to `most`, as wide as the picture; its value changes when it is let go."""
    layout = {"width": WIDTH, "max_width": "99%"}
    return kind(value=value, min=0, max=most, description=name, continuous_update=False, layout=layout, **options)
