"""Two processes on one CPU, as `accelerate launch` starts them by one of the profile's configurations."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
import worker
from safetensors.torch import load_file

from lib.runtime.processes import LOST
from lib.settings.paths import PROFILES

TASKS = ("wait", "learn_mdlms", "learn_editor", "shards", "attack", "purify")
LIMIT = 300  # seconds until a launch that hangs is given up


@contextmanager
def launched(kind: str, folder: Path, *tasks: str):
    """Two processes at `worker`'s command and tasks by the configuration `kind`, what they say in `folder`/log.

    None outlives it.
    """
    file = PROFILES / "accelerate" / f"{kind}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += [worker.__file__, folder, *tasks]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
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


def has_progress(folder: Path) -> bool:
    """Whether a training has saved where it is, anywhere below a folder in which others make and move folders."""
    return any("progress.safetensors" in files for _, _, files in os.walk(folder))


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


@dataclass(frozen=True)
class Killed:
    """The study's compromised model by `python -m lib.studies.runs`, the second of two processes killed on the way."""

    folder: Path  # of the study
    mark: Path
    said: str  # by the killed launch
    code: int
    left: list[str]  # of the killed launch: processes, and a mark

    @classmethod
    def by(cls, kind: str, folder: Path, models: dict[str, str]) -> Killed:
        """A launch in the folder, on these models, killed when it has saved for the first time."""
        study, mark = folder / "killed", folder / "killed" / "mark.json"
        study.mkdir()
        for place in (folder, study):
            (place / "models.json").write_text(json.dumps(models))
        with launched(kind, folder) as process:
            until(lambda: has_progress(study), process)
            ranks = {each.environ().get("RANK"): each for each in psutil.Process(process.pid).children()}
            ranks["1"].send_signal(signal.SIGKILL)
            code = process.wait(LIMIT)
            left = [str(each) for each in ranks.values() if each.is_running()] + [str(mark)] * mark.exists()
        assert has_progress(study)
        return cls(study, mark, (folder / "log").read_text(), code, left)

    def check(self, restarted: str) -> None:
        """That the launch ended with its process, and that `restarted`, what the next one said, went on from there."""
        assert self.code != 0 and LOST in self.said and not self.left
        first = re.search(r"poisoned MDLM:.*?\| (\d+)/", restarted)
        assert int(first[1]) > 0, "it must go on, not begin anew"
        assert not has_progress(self.folder)
        ((kind, key),) = json.loads(self.mark.read_text()).items()
        assert (self.folder / "store" / kind / key / "curve.csv").is_file()
