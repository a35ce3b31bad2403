from collections import Counter
from dataclasses import replace

import pytest
import torch

from lib.config import Run, load_profile
from lib.store import Store
from lib.studies import attacks


def test_the_grid_is_pairs_by_protocols_by_rates_with_seeds_at_one_rate():
    profile = load_profile("laptop")
    found = attacks(profile)
    grid = [attack for attack in found if attack.part == "grid"]
    names = ("image_trigger", "text_trigger", "rate")
    cells = Counter((a.protocol, *(a.settings[name] for name in names)) for a in grid)
    assert len(cells) == 3 * 2 * 3
    assert all(count == (3 if cell[3] == 0.05 else 1) for cell, count in cells.items())
    assert [a.label for a in found if a.part != "grid"] == [v.label for v in profile.grid.variants]
    assert len({attack.name for attack in found}) == len(found)


def test_an_attack_runs_with_its_settings_and_seed_and_nothing_else(tmp_path):
    profile = load_profile("smoke")
    run = Run(profile, 7, torch.device("cpu"), tmp_path, Store(tmp_path))
    attack = replace(attacks(profile)[1], seed=2, settings={"rate": 0.05, "train": {"steps": 9}})
    own = attack.run(run)
    assert own.seed == 9 and own.store is run.store and run.profile == profile
    assert own.profile.collapse.rate == 0.05 and own.profile.collapse.train.steps == 9
    assert own.profile.collapse.train.lr == profile.collapse.train.lr and own.profile.disp == profile.disp


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rates": 0.1}, "rates is not a known key"), ({"train": {"steps": 0}}, "train.steps=0 is refused")],
)
def test_a_variant_that_is_no_attack_is_refused_with_the_profile(settings, message):
    variant = {"part": "size", "label": "wrong", "protocol": "and", "settings": settings}
    with pytest.raises(ValueError, match=f"variant 'wrong': {message}"):
        load_profile("smoke", {"grid": {"variants": [variant]}})


def test_names_are_file_names():
    assert all(attack.name.replace("-", "").replace(".", "").isalnum() for attack in attacks(load_profile("laptop")))
