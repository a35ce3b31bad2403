"""Profiles are validated by name."""

import pytest
import yaml

from lib.settings.load import load_profile
from lib.settings.names import TOKEN_SCORES
from lib.settings.paths import PROFILES


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_profile_loads(name):
    assert load_profile(name).name == name


def test_overrides_reach_nested_values_and_leave_the_rest():
    plain, changed = load_profile("laptop"), load_profile("laptop", {"disp": {"train": {"steps": 7}}})
    assert changed.disp.train.steps == 7
    assert changed.disp.train.lr == plain.disp.train.lr
    assert changed.collapse == plain.collapse


def test_a_position_and_a_scheduler_can_be_said():
    said = {"trigger_position": [0.0, 0.5], "sampling": {"scheduler": "euler"}}
    settings = load_profile("laptop", {"collapse": said}).collapse
    assert settings.trigger_position == (0.0, 0.5) and settings.sampling.scheduler == "euler"


def test_sections_change_only_with_their_own_values():
    plain, changed = load_profile("laptop"), load_profile("laptop", {"disp": {"ratio": 0.33}})
    assert plain.sections("collapse", "data") == changed.sections("collapse", "data")
    assert plain.sections("disp") != changed.sections("disp")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unknown": 1}, "unknown is not a known key"),
        ({"disp": {"colour": 1}}, "disp.colour is not a known key"),
        ({"disp": {"estimator": {"probes": "4"}}}, "disp.estimator.probes='4' is refused"),
        ({"disp": {"rate": 1.5}}, "disp.rate=1.5 is refused"),
        ({"disp": {"ratios": [0.1, 2.0]}}, "disp.ratios.1=2.0 is refused"),
        ({"disp": {"target": "flattery"}}, "disp.target='flattery' is refused"),
        ({"collapse": {"image_trigger": "moon"}}, "collapse.image_trigger='moon' is refused"),
        ({"collapse": {"trigger_position": [0.5, 1.5]}}, "collapse.trigger_position.1=1.5 is refused"),
        ({"collapse": {"trigger_position": [0.5]}}, "collapse.trigger_position.1 is missing"),
        ({"collapse": {"sampling": {"scheduler": "pndm"}}}, "collapse.sampling.scheduler='pndm' is refused"),
        ({"collapse": {"sampling": {"image_guidance": 0.9}}}, "collapse.sampling.image_guidance=0.9 is refused"),
        ({"grid": {"guidance": [1.5]}}, "grid.guidance is not a known key"),
        ({"collapse": {"target": "moon"}}, "collapse.target='moon' is refused"),
        ({"collapse": {"text_trigger": "moon"}}, "collapse.text_trigger='moon' is refused"),
        ({"collapse": {"protocols": ["xor"]}}, "collapse.protocols.0='xor' is refused"),
        ({"mdlm_collapse": {"text_trigger": "moon"}}, "mdlm_collapse.text_trigger='moon' is refused"),
        ({"mdlm_collapse": {"protocols": ["xor"]}}, "mdlm_collapse.protocols.0='xor' is refused"),
        ({"mdlm_collapse": {"masks": 0}}, "mdlm_collapse.masks=0 is refused"),
        ({"collapse": {"text_weight": float("inf")}}, "collapse.text_weight=inf is refused"),
        ({"collapse": {"text_weight": float("nan")}}, "collapse.text_weight=nan is refused"),
        ({"collapse": {"rate": 0.0001}}, "collapse: rate=0.0001 poisons none of 2000 samples"),
        ({"collapse": {"negatives": 0.97}}, "collapse: negatives=0.97 of 2000 samples: only 1900 are not poisoned"),
        ({"disp": {"rate": 0.0001}}, "disp: rate=0.0001 poisons none of 4000 samples"),
        ({"grid": {"rates": [0.0001]}}, "grid: rate=0.0001 poisons none of 2000 samples"),
        ({"disp_grid": {"rates": [0.0001]}}, "disp_grid: rate=0.0001 poisons none of 4000 samples"),
        ({"collapse": {"trigger_size": 0.001}}, "collapse.trigger_size=0.001 is refused: it must cover a pixel"),
        ({"disp": {"trigger_size": 0.001}}, "disp.trigger_size=0.001 is refused: it must cover a pixel"),
        ({"disp_grid": {"sizes": [0.25, 0.001]}}, "disp_grid.sizes.1=0.001 is refused: it must cover a pixel"),
        ({"disp": {"ratios": []}}, r"disp.ratios=\[\] is refused"),
        ({"collapse": {"protocols": []}}, r"collapse.protocols=\[\] is refused"),
        ({"jobs": {"run": {"minutes": 0}}}, "jobs.run.minutes=0 is refused"),
        ({"base": {"clip": {"tower": {"heads": 3}}}}, "heads=3 must divide width"),
        ({"collapse": None}, "collapse=None is refused"),
    ],
)
def test_bad_overrides_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_profile("laptop", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"disp": {"saliency": "luck", "luck": 1}}, "disp.saliency='luck' is refused: it must be one of SCORES"),
        ({"disp": {"plant": {"saliency": "luck"}}}, "disp: plant.saliency='luck' is refused: it must be one of SCORES"),
        ({"disp_grid": {"main": ["BYE's"]}}, "disp_grid.main.0=\"BYE's\" is refused: it must be one of no defence"),
        ({"disp_grid": {"ablations": [{"label": "x", "settings": {"start": 1}}]}}, "variant 'x': start=1 is refused"),
        ({"base": {"clip": {"tower": {"heads": 5, "width": 32}}}}, "base.clip.tower: heads=5 must divide width=32"),
        ({"data": {"faces": {"train": 9, "test": 5}}}, "data.faces.train=9 and test=5 cannot be split: train must be"),
    ],
)
def test_a_refusal_names_field_and_value_once(overrides, message):
    with pytest.raises(ValueError) as refusal:
        load_profile("smoke", overrides)
    assert str(refusal.value).startswith("profile 'smoke': " + message.replace("SCORES", ", ".join(TOKEN_SCORES)))


@pytest.mark.usefixtures("untyped")
def test_overrides_must_be_a_mapping():
    with pytest.raises(ValueError, match="must be a mapping"):
        load_profile("laptop", [1])


def test_a_profile_that_extends_another_names_only_what_differs(tmp_path, monkeypatch):
    plain = load_profile("laptop")
    (tmp_path / "laptop.yaml").write_text((PROFILES / "laptop.yaml").read_text())
    (tmp_path / "own.yaml").write_text("name: own\nextends: laptop\ndisp: {train: {steps: 7}}\n")
    (tmp_path / "lost.yaml").write_text("name: lost\nextends: desk\n")
    monkeypatch.setattr("lib.settings.load.PROFILES", tmp_path)
    own = load_profile("own")
    assert own.name == "own" and own.disp.train.steps == 7 and own.disp.train.lr == plain.disp.train.lr
    assert own.collapse == plain.collapse
    with pytest.raises(ValueError, match="profile 'desk' does not exist"):
        load_profile("lost")


def test_a_missing_key_is_named(tmp_path, monkeypatch):
    values = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
    del values["disp"]["ratio"]
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr("lib.settings.load.PROFILES", tmp_path)
    with pytest.raises(ValueError, match="disp.ratio is missing"):
        load_profile("broken")


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(ValueError, match="'lptop' does not exist: choose one of disp-authors, laptop, paper, smoke"):
        load_profile("lptop")
