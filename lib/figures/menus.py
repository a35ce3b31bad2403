"""Menus over what there is in the store, sliders, and a picture that follows them: the frame of the explorers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets


class Menus(widgets.VBox):
    """A menu a field over the keys of `found`, offering only what exists with the choices before it.

    A subclass has `draw()`, which returns the picture as PNG for the present choices. Where no widgets run (papermill,
    a web page of the notebook) the first picture stands instead. Raises ValueError, `nothing`, for an empty `found`.
    """

    def __init__(
        self, found: Mapping[tuple, Any], fields: tuple[str, ...], sliders: tuple[widgets.Widget, ...], nothing: str
    ):
        if not found:
            raise ValueError(nothing)
        self.found, self._narrowing = found, False
        self.menus = {name: widgets.Dropdown(description=name) for name in fields}
        self.image = widgets.Image(format="png", layout={"width": "720px"})
        self._narrow(0)
        for k, menu in enumerate(self.menus.values()):
            menu.observe(lambda _, k=k: self._narrow(k + 1), "value")
        for slider in sliders:
            slider.observe(lambda _: self._redraw(), "value")
        super().__init__([widgets.HBox(list(self.menus.values())), *sliders, self.image])

    @property
    def fields(self) -> tuple:
        """What the menus say."""
        return tuple(menu.value for menu in self.menus.values())

    @property
    def chosen(self) -> Any:
        """What `found` holds under it."""
        return self.found[self.fields]

    def draw(self) -> bytes:
        """The picture, as PNG."""
        raise NotImplementedError

    def _narrow(self, first: int) -> None:
        if self._narrowing:
            return
        self._narrowing = True
        menus = list(self.menus.values())
        for k in range(first, len(menus)):
            before = tuple(menu.value for menu in menus[:k])
            options = list(dict.fromkeys(key[k] for key in self.found if key[:k] == before))
            kept = menus[k].value if menus[k].value in options else options[0]
            menus[k].options = options
            menus[k].value = kept
        self._narrowing = False
        self._redraw()

    def _redraw(self) -> None:
        self.image.value = self.draw()

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        return bundle | {"image/png": base64.b64encode(self.image.value).decode()}
