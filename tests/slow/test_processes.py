"""Two processes on one CPU, as `accelerate launch` starts them by the profile's own configuration, do what one does."""

import time

import pandas as pd
import pytest
import tiny
import torch
import worker
from launches import LIMIT, TASKS, Killed, attacked, launched, trained, until

from lib.runtime.seeds import generator
from lib.runtime.store import Store, exclusive

NAMES = ("float32", "float64", "llada-v", "lavida", "gemma", "editor")


@pytest.fixture(scope="module")
def killed(tmp_path_factory, models) -> Killed:
    return Killed.by("ddp", tmp_path_factory.mktemp("two"), models)


@pytest.fixture(scope="module")
def done(one_process, killed):
    """Folders of what one process made and of what two made, who also went on with what was killed."""
    two = killed.folder.parent
    with launched("ddp", two, *TASKS) as process:
        with exclusive(two / "locks" / Store(two).key("waited", {}), "the test waits"):
            until(lambda: "is being made by another process; waiting" in (two / "log").read_text(), process)
            time.sleep(0.5)
            assert not list(two.glob("waited/*")) and process.poll() is None
        assert process.wait(LIMIT) == 0, (two / "log").read_text()
    return one_process, two


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_as_one_does(done, name):
    """To round-off, as a mean over a batch is the mean of means over its halves: Adam passes a difference of 10⁻⁷ on in
    float32, where curves agree to 10⁻⁵ after twelve steps, and of 10⁻¹⁶ in float64, where they agree to 10⁻¹⁰."""
    one, two = (trained(folder)[name] for folder in done)
    exact = name in ("float64", "editor")
    pd.testing.assert_frame_equal(two[0], one[0], rtol=1e-10 if exact else 1e-5, atol=0)
    assert one[0]["loss"].iloc[-1] < 0.9 * one[0]["loss"].max()
    assert set(one[1]) == set(two[1])
    for key in one[1]:
        pair = (felt(key, weights[key]) for weights in (two[1], one[1]))
        torch.testing.assert_close(*pair, rtol=0, atol=1e-7 if exact else 1e-3, msg=key)


def felt(key, value):
    """A parameter without the keys' bias: no attention changes with it, so that Adam moves it by round-off alone."""
    queries, _, values = value.chunk(3) if key.endswith("qkv.bias") else (value, None, value[:0])
    return torch.cat([queries, values])


def test_the_first_alone_would_have_learnt_something_else(done):
    """A half of the batch is not the batch: the curves would tell."""
    one, _ = trained(done[0])["float64"]
    mdlm = tiny.mdlm()
    mdlm.model.double()
    half = worker.TRAIN.model_copy(update={"batch": 4})
    value = worker.answer_loss(mdlm, worker.samples(mdlm), half)(generator(1, "float64", 0)).item()
    whole = worker.answer_loss(mdlm, worker.samples(mdlm), worker.TRAIN)(generator(1, "float64", 0)).item()
    assert whole == pytest.approx(one["loss"][0], rel=1e-12) and abs(value - whole) > 1e-3


def test_an_artifact_is_made_once_and_found_by_all(done):
    one, two = done
    for kind in ("waited", "trained", "shards"):
        assert {p.name for p in (one / kind).iterdir()} == {p.name for p in (two / kind).iterdir()}
        assert not [p for p in (two / kind).iterdir() if p.name.startswith(".")]
    assert not [file for file in (two / "work").rglob("*") if file.is_file()]


def test_parts_are_made_in_turn_and_are_the_same_to_the_byte(done):
    one, two = done
    assert (one / "made-by-0").read_text().split() == ["0", "3", "6", "9", "12", "15", "18"]
    assert (two / "made-by-0").read_text().split() == ["0", "6", "12", "18"]
    assert (two / "made-by-1").read_text().split() == ["3", "9", "15"]
    assert (two / "seen-by-0").read_text() == (two / "seen-by-1").read_text() == (one / "seen-by-0").read_text()


@pytest.mark.parametrize("kind", ["saliency", "purified-set"])
def test_saliency_and_answers_of_the_training_set_are_the_same_to_the_byte(done, kind):
    first, second = (list((folder / "store" / kind).glob("*/tensors.safetensors")) for folder in done)
    assert len(first) == len(second) == 1 and first[0].read_bytes() == second[0].read_bytes()


def test_a_killed_process_ends_the_launch_and_the_same_command_goes_on(done, killed):
    """To the bit what two processes do without a kill, to round-off what one does."""
    killed.check((done[1] / "log").read_text())
    (one, _), (two, expected) = map(attacked, done)
    curve, weights = attacked(killed.folder)
    pd.testing.assert_frame_equal(curve, two, check_exact=True)
    assert set(weights) == set(expected) and all(torch.equal(weights[name], expected[name]) for name in expected)
    pd.testing.assert_frame_equal(curve, one, rtol=1e-4)
