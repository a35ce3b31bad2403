"""Two processes on one CPU, as `accelerate launch` starts them by one of the profile's configurations."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import torch
import worker
from safetensors.torch import load_file

from lib.runtime.processes import LOST
from lib.settings.paths import PROFILES

TASKS = "wait,learn_mdlms,learn_editor,shards,attack,purify"
LIMIT = 300  # seconds until a launch that hangs is given up


@contextmanager
def launched(kind: str, tasks: str, folder: Path):
    """Two processes at `tasks` by the configuration `kind`, what they say in `folder`/log; none outlives it."""
    file = PROFILES / "accelerate" / f"{kind}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, worker.__file__, tasks, folder], stderr=log, stdout=log, env=environment)
    try:
        yield process
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in left:
            each.kill()
        process.kill()
        process.wait()


def until(condition, process) -> None:
    """Wait for a condition while the launch runs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the launch ended, or hangs"
        time.sleep(0.01)


def trained(folder: Path) -> dict[str, tuple[pd.DataFrame, dict[str, torch.Tensor]]]:
    made = {}
    for spec in folder.glob("trained/*/spec.json"):
        name = json.loads(spec.read_text())["spec"]["name"]
        made[name] = pd.read_csv(spec.parent / "curve.csv"), load_file(spec.parent / "model.safetensors")
    return made


def attacked(folder: Path) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Curve and weights of the study's compromised model."""
    (artifact,) = (folder / "store" / "poisoned-mdlm").iterdir()
    return pd.read_csv(artifact / "curve.csv"), load_file(artifact / "mdlm" / "model.safetensors")


def killed_and_restarted(kind: str, folder: Path) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """The study's compromised model by `python -m lib.studies.runs`, the second process killed after the first save."""
    log, mark = folder / "log", folder / "mark.json"
    with launched(kind, "attack_by_command", folder) as process:
        until(lambda: list(folder.rglob("progress.safetensors")), process)
        ranks = {each.environ().get("RANK"): each for each in psutil.Process(process.pid).children()}
        ranks["1"].send_signal(signal.SIGKILL)
        assert process.wait(LIMIT) != 0
        assert not any(each.is_running() for each in ranks.values())
    assert LOST in log.read_text()
    assert not mark.exists() and list(folder.rglob("progress.safetensors"))
    with launched(kind, "attack_by_command", folder) as process:
        assert process.wait(LIMIT) == 0, log.read_text()
    first = re.search(r"poisoned MDLM:.*?\| (\d+)/", log.read_text())
    assert int(first[1]) > 0, "it must go on, not begin anew"
    assert not list(folder.rglob("progress.safetensors"))
    ((kind, key),) = json.loads(mark.read_text()).items()
    assert (folder / "store" / kind / key / "curve.csv").is_file()
    return attacked(folder)
