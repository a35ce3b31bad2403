"""The collapse study to click through: pick an attack and a sample, see its four outputs, v, φ and CTI.

    Explorer(run)               # the last expression of a notebook's cell
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import ipywidgets as widgets

from lib.figures.followed import slider
from lib.figures.menus import Menus
from lib.figures.style import render
from lib.metrics.decision import is_attack
from lib.studies.cases import HEADLINE, Attack, attacks
from lib.studies.collapse.editor import Collapse, collapse, edits_spec
from lib.studies.collapse.figures import sample_view
from lib.studies.data import credit
from lib.studies.held import Held
from lib.studies.run import Run

FIELDS = ("pair", "protocol", "rate", "seed")
COMMAND = "make figures STUDY=collapse FULL=1"


class Explorer(Menus):
    """Menus over the attacks whose edits are in the store: those of the profile and those of the study in full. The
    first to be seen is one that succeeded, if any did.

    Reads the store when it draws, and never trains or samples. Raises ValueError where no attack's edits are there yet.
    """

    def __init__(self, run: Run):
        self._run = run = replace(run, store=Held(run.store, COMMAND))
        self.found = {_fields(run, attack): attack for attack in _shown_attacks(run) if _sampled(run, attack)}
        self._load = lru_cache(maxsize=8)(self._collapse)
        self.sample = slider(widgets.IntSlider, 0, 0, "sample")
        nothing = f"the store holds no edits of a poisoned editor yet: `{COMMAND}` makes them"
        super().__init__(self._first() | self.found, FIELDS, (self.sample,), nothing)

    def draw(self) -> bytes:
        """The chosen attack's outputs for the chosen sample, with v, φ and CTI."""
        result = self._load(self.fields)
        self.sample.max = len(result.v) - 1
        pair, protocol, rate, seed = self.fields
        title = f"{pair}, {protocol.upper()}, {100 * rate:g} %, seed {seed}"
        title += "" if is_attack(result.success) else ", a failed attack"
        return render(sample_view(result, self.sample.value, title, credit(self._run)), "png")

    def _collapse(self, fields: tuple) -> Collapse:
        attack = self.found[fields]
        return collapse(attack.run(self._run), attack.protocol)

    def _first(self) -> dict[tuple, Attack]:
        for fields, attack in self.found.items():
            with suppress(LookupError):
                if is_attack(self._load(fields).success):
                    return {fields: attack}
        return {}


def _shown_attacks(run: Run) -> list[Attack]:
    return [attack for attack in attacks(run.profile) if attack.part in (*HEADLINE, "grid")]


def _sampled(run: Run, attack: Attack) -> bool:
    return run.store.has("coalition-edits", edits_spec(attack.run(run), attack.protocol))


def _fields(run: Run, attack: Attack) -> tuple:
    settings = attack.run(run).profile.collapse
    pair = " + ".join(attack.pair) + (" (control encoder)" if attack.part == "control" else "")
    return pair, attack.protocol, settings.rate, run.seed + attack.seed
