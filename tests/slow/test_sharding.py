"""FSDP by two processes on one CPU: what one process does to round-off, also when one of them is killed."""

import json

import pandas as pd
import pytest
import torch
from launches import LIMIT, Killed, attacked, launched, trained

NAMES = ("float64", "llada-v", "gemma")


@pytest.fixture(scope="module")
def killed(tmp_path_factory, models) -> Killed:
    return Killed.by("fsdp", tmp_path_factory.mktemp("two"), models)


@pytest.fixture(scope="module")
def done(one_process, killed):
    """Folders of what one process made and of what two made, who also went on with what was killed."""
    two = killed.folder.parent
    with launched("fsdp", two, "learn_sharded", "attack") as process:
        assert process.wait(LIMIT) == 0, (two / "log").read_text()
    return one_process, two


@pytest.mark.parametrize("name", NAMES)
def test_processes_that_hold_parts_learn_as_one_that_holds_all(done, name):
    """To 10⁻¹⁰ in float64, to 10⁻⁵ in float32; see test_processes."""
    one, two = (trained(folder)[name] for folder in done)
    exact = name == "float64"
    pd.testing.assert_frame_equal(two[0], one[0], rtol=1e-10 if exact else 1e-5, atol=0)
    assert set(one[1]) == set(two[1])
    for key, value in one[1].items():
        torch.testing.assert_close(two[1][key], value, rtol=0, atol=1e-7 if exact else 1e-3, msg=key)


def test_each_process_holds_half_of_what_is_trained(done):
    """Numbers that a process holds during training, as it counts them, against all of them."""
    _, two = done
    held = [json.loads((two / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    for name in NAMES:
        (first, whole), (second, _) = (each[name] for each in held)
        assert first + second == whole and max(first, second) < 0.6 * whole


def test_a_killed_process_ends_the_launch_and_the_same_command_goes_on(done, killed):
    killed.check((done[1] / "log").read_text())
    (one, _), (two, expected) = map(attacked, done)
    curve, weights = attacked(killed.folder)
    pd.testing.assert_frame_equal(curve, two, check_exact=True)
    assert set(weights) == set(expected) and all(torch.equal(weights[name], expected[name]) for name in expected)
    pd.testing.assert_frame_equal(curve, one, rtol=1e-4)
