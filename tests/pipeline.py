"""The pipeline as the Makefile calls it, at smoke scale."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lib.settings.paths import BUILD, ROOT
from lib.studies.pipeline import FULL, Plan

EXECUTED = BUILD / "smoke" / "notebooks"
IN_FULL = FULL["all"]  # notebooks that FULL=1 adds
FEWER = {"disp": {"test_questions": 8, "curve_questions": 4}}  # questions, so that models are the pipeline's
FEWER |= {"disp_grid": {"targets": ["insertion"], "methods": ["directional", "attention", "random", "oracle"]}}


@dataclass(frozen=True)
class Smoke:
    """Where the figures of all notebooks are, each notebook as it was executed, and with which parameters."""

    out: Path
    executed: dict[str, Path]
    parameters: dict[str, dict]


def snakemake(out: Path, *arguments: str, **settings: str) -> str:
    """Its figures go below `out`; what it prints."""
    command = [".venv/bin/snakemake", "--cores", "2", "--nolock", "--rerun-incomplete", "--quiet", "host", *arguments]
    given = {"PROFILE": "smoke", "SEED": "0", "DEVICE": "cpu", "OVERRIDES": "", "OUT": str(out)}
    plain = {"PYTHONPATH": str(ROOT), "STUDY": "", "FULL": "", "EXECUTOR": ""}
    environment = os.environ | plain | given | settings
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs(plan: Plan) -> set[str]:
    """Every notebook and training run of the plan."""
    runs = {run for notebook in plan.notebooks for run in plan.runs(notebook)}
    return {*plan.notebooks, *runs, *filter(None, map(plan.first, runs))}
