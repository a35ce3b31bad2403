"""The collapse study to click through: pick an attack and a sample, see its four outputs, v, φ and CTI.

    Explorer(run)               # the last expression of a notebook's cell
"""

from __future__ import annotations

import base64
from functools import lru_cache

import ipywidgets as widgets

from lib.collapse import Collapse, collapse, edits_spec
from lib.collapse_figures import sample_view
from lib.config import Run
from lib.datasets.openmoji import CREDIT
from lib.plotting import render
from lib.studies import Attack, attacks

FIELDS = ("pair", "protocol", "rate", "seed")


class Explorer(widgets.VBox):
    """Menus over the attacks whose edits are in the store: those of the profile and those of the study in full.

    Redraws from memory, and never trains or samples. Where no widgets run (papermill, a web page of the notebook)
    the first picture stands instead. Raises ValueError where the store has no attack's edits yet.
    """

    def __init__(self, run: Run):
        found = {_fields(run, attack): attack for attack in _known(run) if _sampled(run, attack)}
        if not found:
            raise ValueError("the store holds no edits of a poisoned editor yet: run `collapse` first")
        self._run, self._found, self._narrowing = run, found, False
        self._load = lru_cache(maxsize=8)(self._collapse)
        self.menus = {name: widgets.Dropdown(description=name) for name in FIELDS}
        self.sample = widgets.IntSlider(0, 0, 0, description="sample", continuous_update=False)
        self.image = widgets.Image(format="png", layout={"width": "720px"})
        self._narrow(0)
        for k, menu in enumerate(self.menus.values()):
            menu.observe(lambda _, k=k: self._narrow(k + 1), "value")
        self.sample.observe(lambda _: self._draw(), "value")
        super().__init__([widgets.HBox(list(self.menus.values())), self.sample, self.image])

    @property
    def attack(self) -> Attack:
        """The attack that the menus name."""
        return self._found[tuple(menu.value for menu in self.menus.values())]

    def _narrow(self, first: int) -> None:
        """Offer in the menus from `first` on only what exists with the choices before them, and draw."""
        if self._narrowing:
            return
        self._narrowing = True
        menus = list(self.menus.values())
        for k in range(first, len(menus)):
            before = tuple(menu.value for menu in menus[:k])
            options = list(dict.fromkeys(key[k] for key in self._found if key[:k] == before))
            kept = menus[k].value if menus[k].value in options else options[0]
            menus[k].options = options
            menus[k].value = kept
        self._narrowing = False
        self._draw()

    def _draw(self) -> None:
        fields = tuple(menu.value for menu in self.menus.values())
        result = self._load(fields)
        self.sample.max = len(result.v) - 1
        title = f"{fields[0]}, {fields[1].upper()}, {100 * fields[2]:g} %, seed {fields[3]}"
        self.image.value = render(sample_view(result, self.sample.value, title, CREDIT), "png")

    def _collapse(self, fields: tuple) -> Collapse:
        attack = self._found[fields]
        return collapse(attack.run(self._run), attack.protocol)

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        return bundle | {"image/png": base64.b64encode(self.image.value).decode()}


def _known(run: Run) -> list[Attack]:
    own = [Attack("own", "profile", protocol, 0, {}) for protocol in run.profile.collapse.protocols]
    return own + [attack for attack in attacks(run.profile) if attack.part == "grid"]


def _sampled(run: Run, attack: Attack) -> bool:
    return run.store.has("coalition-edits", edits_spec(attack.run(run), attack.protocol))


def _fields(run: Run, attack: Attack) -> tuple:
    settings = attack.run(run).profile.collapse
    return f"{settings.image_trigger} + {settings.text_trigger}", attack.protocol, settings.rate, run.seed + attack.seed
