"""The pipeline as the Makefile calls it, at smoke scale."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from lib.settings.paths import BUILD, ROOT
from lib.studies import runs
from lib.studies.pipeline import FULL, Plan, planned

EXECUTED = BUILD / "smoke" / "notebooks"
IN_FULL = FULL["all"]  # notebooks that FULL=1 adds
FEWER = {"disp": {"test_questions": 8, "curve_questions": 4}}  # questions, so that models are the pipeline's
FEWER |= {"disp_grid": {"targets": ["insertion"], "methods": ["directional", "attention", "random", "oracle"]}}
# One defence of each kind: test_paper_profile.py has all but one, tests/studies/disp/test_defences.py the rows of each.
FEWER["disp_grid"]["main"] = ["no defence", "masking at inference", "DiSP", "fine-pruning", "BYE", "STRIP-like"]
BY_ITSELF = ("mdlm-poisoned", "editor-pair-white-box-or-0")  # a run of either rule


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


def to_do(out: Path, **settings: str) -> set[str]:
    """The notebooks and training runs that Snakemake would run."""
    return set(re.findall(r"(?:training|notebook) ([\w.-]+) \(", snakemake(out, "--dry-run", **settings)))


def figures(out: Path) -> None:
    """`make figures`, but that all runs other than `BY_ITSELF` are made by this process, which has imported all that a
    process of their own would first import."""
    plan = planned({"PROFILE": "smoke"})
    mark = {run: f"{plan.build}/runs/{run}.json" for run in plan.known}
    snakemake(out, "--", *(mark[name] for name in BY_ITSELF))
    here = sorted(to_do(out) & mark.keys())
    for name in here:
        with patch("sys.argv", ["runs", name, "--profile", "smoke", "--mark", str(ROOT / mark[name])]):
            runs.main()
    if here:
        snakemake(out, "--touch", "--force", "--", *(mark[name] for name in here))
    snakemake(out)


def jobs(plan: Plan) -> set[str]:
    """Every notebook and training run of the plan."""
    runs = {run for notebook in plan.notebooks for run in plan.runs(notebook)}
    return {*plan.notebooks, *runs, *filter(None, map(plan.first, runs))}
