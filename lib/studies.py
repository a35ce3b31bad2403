"""Which attacks the studies in full hold.

    attack = attacks(run.profile)[0]
    poisoned_editor(attack.run(run), attack.protocol)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from lib.config import Profile, Run, changed


@dataclass(frozen=True)
class Attack:
    """One poisoned editor of the study: `settings` are merged onto the profile's, `seed` added to the run's."""

    part: str
    label: str
    protocol: str
    seed: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """A file name of its own: part, label, protocol and seed."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{self.part} {self.label} {self.protocol} {self.seed}".lower())
        return f"collapse-{words}"

    def run(self, run: Run) -> Run:
        """The run with the attack's settings and seed."""
        section = changed(run.profile.collapse, self.settings)
        return replace(run, seed=run.seed + self.seed, profile=run.profile.model_copy(update={"collapse": section}))


def attacks(profile: Profile) -> list[Attack]:
    """Pairs × protocols × rates with their seeds (part "grid"), then the variants in the profile's order."""
    grid = profile.grid
    made = []
    for image, text in grid.pairs:
        for protocol in ("or", "and"):
            for share in grid.rates:
                settings = {"image_trigger": image, "text_trigger": text, "rate": share}
                for seed in range(grid.seeds if share == grid.seeded_rate else 1):
                    made.append(Attack("grid", f"{image} {text} {share:g}", protocol, seed, settings))
    return made + [Attack(seed=0, **variant.model_dump()) for variant in grid.variants]
