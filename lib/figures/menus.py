"""Menus over what there is in the store, sliders, and a picture that follows them: the frame of the explorers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

from lib.figures.followed import Followed


class Menus(Followed):
    """A menu a field over the keys of `found`, offering only what exists with the choices before it.

    A subclass has `draw()`, which returns the picture as PNG for the present choices. Raises ValueError, `nothing`, for
    an empty `found`.
    """

    def __init__(
        self, found: Mapping[tuple, Any], fields: tuple[str, ...], sliders: tuple[widgets.Widget, ...], nothing: str
    ):
        if not found:
            raise ValueError(nothing)
        self.found, self._narrowing = found, False
        self.menus = {name: widgets.Dropdown(description=name) for name in fields}
        self._narrow(0)
        shown = widgets.HBox(list(self.menus.values()), layout={"flex_flow": "row wrap"})  # all, in a narrow window too
        super().__init__([shown, *sliders], self.draw)
        for k, menu in enumerate(self.menus.values()):
            menu.observe(lambda _, k=k: self._chosen(k), "value")
        for slider in sliders:
            slider.observe(lambda _: self.redraw(), "value")

    @property
    def fields(self) -> tuple:
        """What the menus say."""
        return tuple(menu.value for menu in self.menus.values())

    def draw(self) -> bytes:
        """The picture, as PNG."""
        raise NotImplementedError

    @property
    def chosen(self) -> Any:
        """What `found` holds under it."""
        return self.found[self.fields]

    def _chosen(self, k: int) -> None:
        if not self._narrowing:
            self._narrow(k + 1)
            self.redraw()

    def _narrow(self, first: int) -> None:
        """What the menus from that one on offer, each at what it said before, where it still can."""
        self._narrowing = True
        menus = list(self.menus.values())
        for k in range(first, len(menus)):
            before = tuple(menu.value for menu in menus[:k])
            options = list(dict.fromkeys(key[k] for key in self.found if key[:k] == before))
            kept = menus[k].value if menus[k].value in options else options[0]
            menus[k].options = options
            menus[k].value = kept
        self._narrowing = False
