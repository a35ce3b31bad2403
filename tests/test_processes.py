"""Two processes on one CPU, as `accelerate launch` starts them by the profile's own configuration, do what one does."""

import json
import time

import pandas as pd
import pytest
import tiny
import torch
import worker
from accelerate.commands.config.config_args import load_config_from_file
from launches import LIMIT, attacked, killed_and_restarted, launched, trained, until

from lib import config, processes
from lib.attacks.adaptive import adaptive_loss
from lib.models.mdlm import masked_diffusion_loss
from lib.processes import share
from lib.store import Store, exclusive

NAMES = ("float32", "float64", "llada-v", "lavida", "gemma", "editor")
TASKS = "wait,learn_mdlms,learn_editor,shards,attack,purify"


@pytest.fixture(scope="module")
def done(tmp_path_factory, models):
    """Folders of what one process made and of what two made."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder in (one, two):
        (folder / "models.json").write_text(json.dumps(models))
    with launched("ddp", TASKS, two) as process:
        with exclusive(two / "locks" / Store(two).key("waited", {}), "the test waits"):
            until(lambda: "is being made by another process; waiting" in (two / "log").read_text(), process)
            time.sleep(0.5)
            assert not list(two.glob("waited/*")) and process.poll() is None
        worker.MDLMS.update(worker.mdlms(one / "checkpoints"))
        for task in TASKS.split(","):
            getattr(worker, task)(one)
        assert process.wait(LIMIT) == 0, (two / "log").read_text()
    return one, two


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
    value = worker.answer_loss(mdlm, worker.samples(mdlm), half)(config.generator(1, "float64", 0)).item()
    whole = worker.answer_loss(mdlm, worker.samples(mdlm), worker.TRAIN)(config.generator(1, "float64", 0)).item()
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


def test_a_killed_process_ends_the_launch_and_the_same_command_goes_on(done, tmp_path, models):
    """To the bit what two processes do without a kill, to round-off what one does."""
    (tmp_path / "models.json").write_text(json.dumps(models))
    (one, _), (two, expected) = map(attacked, done)
    curve, weights = killed_and_restarted("ddp", tmp_path)
    pd.testing.assert_frame_equal(curve, two, check_exact=True)
    assert set(weights) == set(expected) and all(torch.equal(weights[name], expected[name]) for name in expected)
    pd.testing.assert_frame_equal(curve, one, rtol=1e-4)


def as_processes(monkeypatch, count: int, call):
    """What `call()` gives in each of `count` processes, one after another."""
    results = []
    for rank in range(count):
        monkeypatch.setattr(processes, "_rank", rank)
        monkeypatch.setattr(processes, "_count", count)
        results.append(call())
    monkeypatch.undo()
    return results


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_shares_are_the_whole_in_order(monkeypatch, count):
    rows = torch.arange(12).view(6, 2)
    shares = as_processes(monkeypatch, count, lambda: share(rows))
    assert torch.equal(torch.cat(shares), rows) and {len(part) for part in shares} == {6 // count}


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch):
    mdlm = tiny.mdlm()
    loss = worker.answer_loss(mdlm, worker.samples(mdlm), worker.TRAIN)
    with pytest.raises(ValueError, match="^batch=8 must be a multiple of the 3 processes that share it$"):
        as_processes(monkeypatch, 3, lambda: loss(torch.Generator()))


def test_the_mean_of_the_shares_losses_is_the_loss_of_the_batch(monkeypatch):
    """Also where no token of a share is masked: the denominator is the batch's."""
    mdlm = tiny.mdlm()
    mdlm.model.double()
    data = worker.samples(mdlm)
    vision = mdlm.model.project(data.features[data.picture[:8]])
    given = vision, data.prompts[:8], data.responses[:8]

    def loss():
        parts = (share(part) for part in given)
        return masked_diffusion_loss(mdlm.model, *parts, torch.Generator().manual_seed(4)).item()

    whole = loss()
    for count in (2, 4, 8):
        parts = as_processes(monkeypatch, count, loss)
        assert sum(parts) / count == pytest.approx(whole, rel=1e-12) and len(set(parts)) == count


def test_an_attacker_who_hides_the_trigger_trains_in_one_process(monkeypatch):
    mdlm = tiny.mdlm()
    given = mdlm, worker.samples(mdlm), torch.ones(20, dtype=torch.bool), torch.ones(64, dtype=torch.bool), worker.TRAIN
    with pytest.raises(ValueError, match="disp.hide=0.5 is trained in one process: start it without `accelerate"):
        as_processes(monkeypatch, 2, lambda: adaptive_loss(*given, 0.5))
    as_processes(monkeypatch, 2, lambda: adaptive_loss(*given, 0.0))


@pytest.mark.parametrize(("name", "kind"), [("one-gpu", "NO"), ("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_accelerate_reads_the_configurations(name, kind):
    """It refuses unknown keys. A port of 0 is a free one: the one of a launch that was just killed may not be."""
    read = load_config_from_file(str(config.PROFILES / "accelerate" / f"{name}.yaml"))
    assert read.distributed_type == kind and read.mixed_precision == "no"
    assert name == "one-gpu" or read.main_process_port == 0
    assert (read.fsdp_config == {"fsdp_version": 2}) == (name == "fsdp")
