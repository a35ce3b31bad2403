"""FSDP by two processes on one CPU: what one process does to round-off, also when one of them is killed."""

import json

import pandas as pd
import pytest
import torch
from launches import LIMIT, attacked, killed_and_restarted, launched, trained

NAMES = ("float64", "llada-v", "gemma")


@pytest.fixture(scope="module")
def done(one_process, tmp_path_factory, models):
    """Folders of what one process made and of what two made."""
    two = tmp_path_factory.mktemp("two")
    (two / "models.json").write_text(json.dumps(models))
    with launched("fsdp", "learn_sharded,attack", two) as process:
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


def test_a_killed_process_ends_the_launch_and_the_same_command_goes_on(done, tmp_path, models):
    (tmp_path / "models.json").write_text(json.dumps(models))
    (one, _), (two, expected) = map(attacked, done)
    curve, weights = killed_and_restarted("fsdp", tmp_path)
    pd.testing.assert_frame_equal(curve, two, check_exact=True)
    assert set(weights) == set(expected) and all(torch.equal(weights[name], expected[name]) for name in expected)
    pd.testing.assert_frame_equal(curve, one, rtol=1e-4)
