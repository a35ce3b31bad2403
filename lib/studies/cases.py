"""Which attacks and defences the studies in full hold, and which of DiSP's notebook 04 shows.

    attack = attacks(run.profile)[0]
    poisoned_editor(attack.run(run), attack.protocol)
    case = cases(run.profile)[0]
    purified_mdlm(case.run(run))
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lib.settings.profile import Profile
from lib.studies.run import Run, with_profile, with_settings

HEADLINE = ("pair", "control")  # parts of the study that notebook 03 shows


@dataclass(frozen=True)
class Attack:
    """One poisoned editor of the study: `settings` are merged onto the profile's, `seed` added to the run's.

    further: whether `make figures` computes it only with FULL=1, though notebook 03 shows it. model: of which of
    the profile's `models` it is the attack.
    """

    part: str
    label: str
    protocol: str
    seed: int
    settings: dict[str, Any]
    further: bool = False
    model: str = "editor"

    @property
    def name(self) -> str:
        """A file name of its own: part, label, protocol and seed."""
        study = "further" if self.further else "editor" if self.part in HEADLINE else "collapse"
        return _file_name(study, self.part, self.label, self.protocol, self.seed)

    @property
    def pair(self) -> tuple[str, str]:
        """The image and the text trigger."""
        return self.settings["image_trigger"], self.settings["text_trigger"]

    def run(self, run: Run) -> Run:
        """The run with the attack's settings and seed, on its model."""
        if self.model == "control":
            run = with_profile(run, {"models": {"editor": run.profile.models.control}})
        return with_settings(run, "collapse", self.settings, self.seed)


@dataclass(frozen=True)
class Case:
    """One compromised MDLM of the DiSP study, or (part "ablation") one way to purify the profile's.

    `settings` are merged onto the section `disp`, those of the part "data" onto the whole profile.
    """

    part: str
    label: str
    seed: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """A file name of its own: part, label and seed."""
        return _file_name("disp", self.part, self.label, self.seed)

    def run(self, run: Run) -> Run:
        """The run with the case's settings and seed."""
        if self.part == "data":
            return with_profile(run, self.settings, self.seed)
        return with_settings(run, "disp", self.settings, self.seed)


def pair_text(pair: tuple[str, str]) -> str:
    """An image and a text trigger as a reader is told them: "white box + mignneko"."""
    return " + ".join(pair).replace("-", " ")


def _file_name(*words: str | int) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(map(str, words)).lower())


def headline_attacks(profile: Profile) -> list[Attack]:
    """What notebook 03 shows: every pair under OR and AND at the seeded rate (part "pair"), then the first pair on the
    control (part "control"), seed after seed. Of the other pairs and the control, seeds from `plain_seeds` on are
    `further`. Watched while they are trained are the first pair's of the first seed, whose curves notebook 02 shows.
    """
    grid, listed = profile.grid, []
    settings = [{"image_trigger": i, "text_trigger": t, "rate": grid.seeded_rate} for i, t in grid.pairs]
    chosen = [("pair", one, seed) for one in settings for seed in range(grid.seeds)]
    if profile.models.control is not None:
        chosen += [("control", settings[0], seed) for seed in range(grid.control_seeds)]
    for part, one, seed in chosen:
        late = seed >= grid.plain_seeds and (part == "control" or one is not settings[0])
        watched = one is settings[0] and seed == 0
        changes = one if watched else one | {"train": {"watch_every": None}}
        model = "control" if part == "control" else "editor"
        for protocol in ("or", "and"):
            listed.append(Attack(part, one["image_trigger"], protocol, seed, changes, late, model))
    return listed


def first_attacks(profile: Profile) -> list[Attack]:
    """Of the headline's attacks those of the first pair and seed: on the editor, then on the control, if any."""
    headline = headline_attacks(profile)
    return [attack for attack in headline if attack.pair == headline[0].pair and attack.seed == 0]


def attacks(profile: Profile) -> list[Attack]:
    """Those of the headline, pairs × protocols × the other rates (part "grid"), then the variants in the profile's
    order, each with its seeds, watched where they say so. On the control only where the profile names one."""
    grid, listed = profile.grid, headline_attacks(profile)
    unwatched = {"train": {"watch_every": None}}
    for (image, text), protocol, share in product(grid.pairs, ("or", "and"), grid.rates):
        if share != grid.seeded_rate:
            settings = {"image_trigger": image, "text_trigger": text, "rate": share} | unwatched
            label = f"{image} {text} {share:g}"
            listed += [Attack("grid", label, protocol, seed, settings) for seed in range(grid.rate_seeds)]
    for variant in grid.variants:
        if variant.model == "editor" or profile.models.control is not None:
            given = variant.model_dump(exclude={"seeds", "settings"})
            train = variant.settings.get("train", {})
            watched = variant.part == "steps"  # by the profile's own setting where it does not say how often
            settings = variant.settings | {"train": train if watched else unwatched["train"] | train}
            listed += [Attack(seed=seed, settings=settings, **given) for seed in range(variant.seeds)]
    return listed


def cases(profile: Profile) -> list[Case]:
    """Seeds of the profile's own attack, that on other data, its unattacked fine-tune, rates, every target with every
    seed (part "headline"), targets, triggers, their sizes with every seed (part "phase"), attackers, ablations. Rates,
    targets, triggers and attackers are tried with `attack_seeds` seeds each."""
    disp, grid = profile.disp, profile.disp_grid
    tried = range(grid.attack_seeds)
    listed = [Case("seed", f"seed {seed}", seed, {}) for seed in range(grid.seeds)]
    listed += [Case("data", data.label, seed, data.settings) for data in grid.datasets for seed in range(data.seeds)]
    listed += [Case("rate", f"{share:g}", seed, {"rate": share}) for share in (0.0, *grid.rates) for seed in tried]
    targets = tuple(dict.fromkeys((disp.target, *grid.targets)))
    listed += [Case("headline", name, seed, {"target": name}) for name in targets for seed in range(grid.seeds)]
    listed += [Case("target", name, seed, {"target": name}) for name in targets for seed in tried]
    if grid.triggers:
        names = dict.fromkeys((disp.image_trigger, *grid.triggers))
        listed += [Case("trigger", name, seed, {"image_trigger": name}) for name in names for seed in tried]
    sized = [(f"{size:g}", {"trigger_size": size, "trigger_pixels": None}) for size in grid.sizes]
    listed += [Case("phase", label, seed, settings) for label, settings in sized for seed in range(grid.seeds)]
    listed += [Case("attacker", one.label, seed, one.settings) for one in grid.attackers for seed in tried]
    return listed + [Case("ablation", ablation.label, 0, ablation.settings) for ablation in grid.ablations]


def few(profile: Profile) -> Profile | None:
    """The profile with `disp_few` in the place of `disp_grid`; None where it has none."""
    return profile.disp_few and profile.model_copy(update={"disp_grid": profile.disp_few})


def few_of(run: Run) -> Run | None:
    """The run with the profile that `few` gives; None where it gives none."""
    profile = few(run.profile)
    return profile and replace(run, profile=profile)
