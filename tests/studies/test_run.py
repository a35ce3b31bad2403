"""Notebooks refuse bad parameters before any work."""

import pytest

from lib.settings.paths import PROFILES
from lib.studies.run import run_parameters


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"seed": 1.0}, "seed=1.0"),
        ({"device": "tpu9"}, "device='tpu9'"),
        ({"device": "cuda:99"}, "device='cuda:99' is not on this machine"),
        ({"out": ""}, "out=''"),
        ({"out": "README.md"}, "out='README.md'"),
        ({"profile": "paper"}, "models.mdlm='data/local/llada-v' must be a folder that is there"),
        ({"overrides": {"models": {"dino": "nowhere"}}}, "models.dino='nowhere' must be a folder"),
        ({"overrides": "x"}, "overrides='x'"),
    ],
)
def test_notebook_parameters_are_refused_before_work(bad, message, monkeypatch):
    monkeypatch.chdir(PROFILES.parent)
    parameters = {"profile": "smoke", "seed": 0, "device": "cpu", "out": None, "overrides": None} | bad
    with pytest.raises(ValueError, match=message):
        run_parameters("01_poisoning", **parameters)
