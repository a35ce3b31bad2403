"""Two processes at one training: the curve of one process, one killed and both started again, one artifact."""

import os
import subprocess

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_training import denoising, module, settings

from lib.config import ROOT, generator
from lib.parallel import add_up, agreed, processes, wait
from lib.training import fit


def test_two_processes_give_the_curve_of_one_though_one_was_killed(tmp_path):
    """The second process dies at its seventh batch, after the save at step 4; both go on from there."""
    whole = module()
    expected = fit(whole, denoising(whole), settings(accumulate=2), label="x", seed=5)
    launch = [".venv/bin/accelerate", "launch", "--config_file", "executors/accelerate/gpus.yaml"]
    launch += ["--max_restarts", "1", "--monitor_interval", "0.5", "tests/shared_training.py", str(tmp_path), "6"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "failed (exitcode: -9) local_rank: 1" in said
    (made,) = (tmp_path / "store" / "net").iterdir()
    curve = pd.read_csv(made / "curve.csv")
    pd.testing.assert_frame_equal(curve, expected, check_exact=False, rtol=1e-5)
    torch.testing.assert_close(load_file(made / "weight.safetensors")["weight"], whole[2].weight.detach())
    assert [(tmp_path / f"seen-{rank}").read_text() for rank in (0, 1)] == ["8 True", "8 True"]


def test_accumulated_batches_are_one_step_of_their_mean():
    chosen = settings(accumulate=3, steps=1, warmup=0)
    once, net = module(), module()
    fit(once, denoising(once), chosen, label="x", seed=5)

    def mean(draw):
        return sum(denoising(net)(generator(5, "x", 0, part)) for part in range(3)) / 3

    fit(net, mean, chosen.model_copy(update={"accumulate": 1}), label="x", seed=5)
    torch.testing.assert_close(once.state_dict(), net.state_dict())


def test_batches_that_cannot_be_shared_evenly_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    net = module()
    with pytest.raises(ValueError, match="accumulate=3 must be a multiple of the 2 processes"):
        fit(net, denoising(net), settings(accumulate=3), label="x", seed=5)


def test_one_process_alone_waits_for_none():
    tensors = [torch.ones(2)]
    assert (processes(), add_up(tensors, 3.0), agreed("a")) == ((0, 1), 3.0, "a")
    assert torch.equal(tensors[0], torch.ones(2))
    wait()
