from collections import Counter
from dataclasses import replace

import pytest
import torch

from lib.runtime.store import Store
from lib.settings.load import load_profile
from lib.studies.cases import HEADLINE, attacks, cases, few, few_of, first_attacks, headline_attacks
from lib.studies.collapse.editor import PAPER
from lib.studies.run import Run


def test_the_grid_is_pairs_by_protocols_by_rates_by_seeds():
    profile = load_profile("laptop")
    found = attacks(profile)
    grid = [attack for attack in found if attack.part in ("pair", "grid")]
    names = ("image_trigger", "text_trigger", "rate")
    cells = Counter((a.protocol, *(a.settings[name] for name in names)) for a in grid)
    assert len(cells) == 3 * 2 * 3
    seeds = {True: profile.grid.seeds, False: profile.grid.rate_seeds}
    assert all(count == seeds[cell[3] == profile.grid.seeded_rate] for cell, count in cells.items())
    assert all((attack.part == "pair") == (attack.settings["rate"] == 0.05) for attack in grid)
    variants = [(a.label, a.seed) for a in found if a.part not in (*HEADLINE, "grid")]
    assert variants == [(v.label, seed) for v in profile.grid.variants for seed in range(v.seeds)]
    watched = {a.part for a in found if a.settings.get("train", {}).get("watch_every", True)}
    assert watched == {"pair", "control", "steps", "detect"}
    assert len({attack.name for attack in found}) == len(found)


def test_the_headline_is_every_pair_and_the_first_on_the_control():
    profile = load_profile("laptop")
    found = headline_attacks(profile)
    assert found == [attack for attack in attacks(profile) if attack.part in HEADLINE]
    assert {(*attack.pair, attack.protocol) for attack in found if attack.part == "pair"} == set(PAPER)
    control = [(*attack.pair, attack.protocol, attack.seed) for attack in found if attack.part == "control"]
    first = "white-box", "mignneko"
    assert control == [(*first, p, seed) for seed in range(profile.grid.control_seeds) for p in ("or", "and")]
    assert [a.name for a in found[:2]] == ["editor-pair-white-box-or-0", "editor-pair-white-box-and-0"]
    assert all(a.name.startswith("collapse-") for a in attacks(profile) if a not in found)
    without = profile.model_copy(update={"models": profile.models.model_copy(update={"control": None})})
    assert headline_attacks(without) == [attack for attack in found if attack.part == "pair"]
    assert {attack.model for attack in attacks(without)} == {"editor"}


def test_the_attacks_shown_first_are_one_pair_and_one_seed():
    profile = load_profile("smoke", {"grid": {"seeds": 3, "control_seeds": 2}})
    assert [(a.part, a.protocol, a.seed) for a in first_attacks(profile)] == [
        (part, protocol, 0) for part in ("pair", "control") for protocol in ("or", "and")
    ]
    without = profile.model_copy(update={"models": profile.models.model_copy(update={"control": None})})
    assert [attack.part for attack in first_attacks(without)] == ["pair", "pair"]


def test_later_seeds_of_other_pairs_and_of_the_control_come_in_full_alone():
    found = headline_attacks(load_profile("laptop"))
    plain = [attack for attack in found if not attack.further]
    assert Counter((a.part, a.label) for a in plain) == {
        ("pair", "white-box"): 6, ("pair", "eyeglasses"): 2, ("pair", "stop-sign"): 2, ("control", "white-box"): 2
    }  # fmt: skip
    assert all(attack.name.startswith("further-" if attack.further else "editor-") for attack in found)
    assert not any(attack.further for attack in headline_attacks(load_profile("smoke")))


def test_an_attack_on_the_control_edits_with_it(tmp_path):
    profile = load_profile("smoke")
    run = Run(profile, 7, torch.device("cpu"), tmp_path, Store(tmp_path))
    editors = {(attack.part, attack.model): attack.run(run).profile.models.editor for attack in attacks(profile)}
    assert {editors.pop((part, "control")) for part in ("control", "cell")} == {profile.models.control}
    assert set(editors.values()) == {profile.models.editor} != {profile.models.control}


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
    variant = {"part": "cell", "label": "wrong", "protocol": "and", "settings": settings}
    with pytest.raises(ValueError, match=f"variant 'wrong': {message}"):
        load_profile("smoke", {"grid": {"variants": [variant]}})


def test_a_sampling_that_is_none_is_refused_with_the_profile():
    sampling = {"label": "wrong", "settings": {"image_guidance": 0.5}}
    with pytest.raises(ValueError, match="variant 'wrong': image_guidance=0.5 is refused"):
        load_profile("smoke", {"grid": {"samplings": [sampling]}})


def test_the_cases_of_disp_are_seeds_rates_targets_triggers_and_ablations():
    profile = load_profile("laptop")
    found = cases(profile)
    parts = {part: [case for case in found if case.part == part] for part in dict.fromkeys(c.part for c in found)}
    assert [case.seed for case in parts["seed"]] == [0, 1, 2] and not any(case.settings for case in parts["seed"])
    wanted = [(data.label, seed) for data in profile.disp_grid.datasets for seed in range(data.seeds)]
    assert [(case.label, case.seed) for case in parts["data"]] == wanted and ("easy-VQA", 0) in wanted
    for part in ("rate", "target", "trigger", "attacker"):
        assert [case.seed for case in parts[part]] == [0, 1, 2] * (len(parts[part]) // 3)
        parts[part] = parts[part][::3]
    assert [case.settings["rate"] for case in parts["rate"]] == [0.0, *profile.disp_grid.rates]
    targets = [case.settings["target"] for case in parts["target"]]
    assert targets == ["insertion", "refusal", "a smile as a sad mouth"]
    headline = [(case.settings["target"], case.seed) for case in parts["headline"]]
    assert headline == [(case.label, seed) for case in parts["target"] for seed in range(3)]
    assert [case.settings["image_trigger"] for case in parts["trigger"]][0] == profile.disp.image_trigger
    assert [case.settings for case in parts["attacker"]] == [a.settings for a in profile.disp_grid.attackers]
    assert [list(case.settings) for case in parts["attacker"]][:3] == [["rate", "train"], ["image_trigger"], ["hide"]]
    assert [case.label for case in parts["ablation"]] == [a.label for a in profile.disp_grid.ablations]
    assert len({case.name for case in found}) == len(found)


def test_a_case_runs_with_its_settings_and_seed_and_nothing_else(tmp_path):
    profile = load_profile("smoke")
    run = Run(profile, 7, torch.device("cpu"), tmp_path, Store(tmp_path))
    case = replace(cases(profile)[0], seed=1, settings={"ratio": 0.5, "purify": {"steps": 9}})
    own = case.run(run)
    assert own.seed == 8 and own.store is run.store and run.profile == profile
    assert own.profile.disp.ratio == 0.5 and own.profile.disp.purify.steps == 9
    assert own.profile.disp.purify.lr == profile.disp.purify.lr and own.profile.collapse == profile.collapse


def test_a_case_on_other_data_changes_the_whole_profile(tmp_path):
    profile = load_profile("smoke")
    run = Run(profile, 7, torch.device("cpu"), tmp_path, Store(tmp_path))
    case = next(case for case in cases(profile) if case.part == "data")
    own = replace(case, seed=1, settings={"data": {"questions": "easy-vqa"}, "disp": {"rate": 0.3}}).run(run)
    assert own.seed == 8 and own.profile.data.questions == "easy-vqa" and own.profile.disp.rate == 0.3
    assert own.profile.models == profile.models and own.profile.disp.train == profile.disp.train


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"data": {"questions": "photos"}}, "data.questions"), ({"model": {}}, "model is not a known key")],
)
def test_data_that_are_none_are_refused_with_the_profile(settings, message):
    wrong = {"label": "wrong", "seeds": 1, "settings": settings}
    with pytest.raises(ValueError, match=f"data set 'wrong': {message}"):
        load_profile("smoke", {"disp_grid": {"datasets": [wrong]}})


def test_an_ablation_that_is_no_setting_is_refused_with_the_profile():
    wrong = {"label": "wrong", "settings": {"saliency": "luck"}}
    with pytest.raises(ValueError, match="variant 'wrong': saliency='luck' is refused: it must be one of directional"):
        load_profile("smoke", {"disp_grid": {"ablations": [wrong]}})
    with pytest.raises(ValueError, match="variant 'wrong': saliency='luck' is refused"):
        load_profile("smoke", {"disp_grid": {"attackers": [wrong]}})
    with pytest.raises(ValueError, match="variant 'wrong': saliency='luck' is refused"):
        load_profile("smoke", {"disp_few": {"ablations": [wrong]}})
    with pytest.raises(ValueError, match="disp_grid.defences.0='luck' is refused: it must be one of no defence"):
        load_profile("smoke", {"disp_grid": {"defences": ["luck"]}})


@pytest.mark.parametrize("name", ["smoke"])  # the laptop's shows none while DiSP's score is being replaced
def test_what_notebook_04_shows_is_a_part_of_the_study_in_full(name):
    """So that what it shows is there to compare, and figures 2 to 4 have something to show."""
    profile = load_profile(name)
    part, full = few(profile), {case.name: case for case in cases(profile)}
    shown = cases(part)
    assert {case.part for case in shown} == {"seed", "rate", "headline", "target", "ablation"}
    assert all(full.get(case.name) == case for case in shown) and len(shown) < len(full)
    assert set(part.disp_grid.defences) <= set(profile.disp_grid.defences)
    assert set(part.disp_grid.methods) <= set(profile.disp_grid.methods)
    assert few(profile.model_copy(update={"disp_few": None})) is None


def test_the_run_of_that_part_differs_in_it_alone(tmp_path):
    profile = load_profile("smoke")
    run = Run(profile, 7, torch.device("cpu"), tmp_path, Store(tmp_path))
    own = few_of(run)
    assert own.profile.disp_grid == profile.disp_few and own.profile.disp == profile.disp
    assert (own.seed, own.store) == (7, run.store)
    without = replace(run, profile=profile.model_copy(update={"disp_few": None}))
    assert few_of(without) is None


def test_names_are_file_names():
    profile = load_profile("laptop")
    names = [made.name for made in (*attacks(profile), *cases(profile))]
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)
