"""The pipeline: training runs, then the notebooks that look at them, then the table of all headline numbers.

`make figures` runs it. The settings come in environment variables, as the Makefile exports them, and go to
the jobs in the same way: text with spaces and quotes passes through untouched, and a setting re-runs only
the jobs in whose `params` it makes a difference.
"""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from lib.studies.clock import check_clock, settle
from lib.studies.pipeline import READS, planned

CODE = sorted(str(file) for file in Path("lib").rglob("*.py"))
CHECKPOINTS = sorted(str(file) for file in Path("data/checkpoints").rglob("*.*") if file.suffix != ".md")
try:
    plan = planned(os.environ)
    check_clock([*CODE, *CHECKPOINTS, *(f"notebooks/{notebook}.ipynb" for notebook in plan.notebooks)])
except ValueError as error:
    sys.exit(f"make figures: {error}")
settle([plan.build, *(f"{plan.out}/{part}" for part in (*plan.notebooks, "headline.csv", "MANIFEST.json"))])
OUT, BUILD, profile = plan.out, plan.build, plan.profile
os.environ.update(plan.environment(), PYTHONPATH=workflow.basedir, PYTHON=sys.executable)
GPU = {"gpu": 1} if plan.device.startswith("cuda") else {}

REPORTS = expand(f"{OUT}/{{notebook}}/{{file}}", notebook=plan.notebooks, file=["headline.csv", "manifest.json"])


def asks(job):
    """The resources of a rule: what the profile says, and that again at every further attempt."""
    return {
        "mem_mb": lambda wildcards, attempt: attempt * job.memory_mb,
        "runtime": lambda wildcards, attempt: attempt * job.minutes,
    } | GPU


def marks(*runs):
    return [f"{BUILD}/runs/{run}.json" for run in runs]


envvars:
    "PYTHONPATH",
    "PYTHON",
    "PROFILE",
    "SEED",
    "DEVICE",
    "OUT",
    "OVERRIDES",
    "PARAMETERS",


localrules:
    all,
    headline,


# Each file by itself: of one that is missing Snakemake asks no more where the last of all is there.
rule all:
    input:
        f"{OUT}/headline.csv",
        REPORTS,
        expand(f"{OUT}/{{notebook}}/{{notebook}}.ipynb", notebook=plan.notebooks),


rule run:
    input:
        CODE,
        CHECKPOINTS,
        lambda wildcards: marks(*filter(None, [plan.first(wildcards.run)])),
    output:
        f"{BUILD}/runs/{{run}}.json",
    params:
        lambda wildcards: plan.depends(wildcards.run),
    log:
        f"{BUILD}/logs/{{run}}.log",
    benchmark:
        f"{BUILD}/times/{{run}}.tsv"
    threads: profile.threads
    resources:
        **asks(profile.jobs.run),
    wildcard_constraints:
        run="|".join(re.escape(run) for run in plan.known if run != "mdlm-poisoned"),
    message:
        "training {wildcards.run} (progress: {log})"
    shell:
        '"$PYTHON" -m lib.studies.runs {wildcards.run} --profile "$PROFILE" --seed "$SEED" --device "$DEVICE"'
        ' --overrides "$OVERRIDES" --mark {output:q} >{log:q} 2>&1'


# The longest: begun last, it would leave a core idle at the end.
use rule run as longest_run with:
    output:
        f"{BUILD}/runs/{{run}}.json",
    wildcard_constraints:
        run="mdlm-poisoned",
    priority: 1


# papermill writes the notebook after every cell, failed or not: it stays with the logs until it is whole.
rule notebook:
    input:
        CODE,
        CHECKPOINTS,
        lambda wildcards: marks(*plan.runs(wildcards.notebook)),
        source="notebooks/{notebook}.ipynb",
    output:
        f"{OUT}/{{notebook}}/headline.csv",
        f"{OUT}/{{notebook}}/manifest.json",
        shown=f"{OUT}/{{notebook}}/{{notebook}}.ipynb",
        executed=f"{BUILD}/notebooks/{{notebook}}.ipynb",
    params:
        lambda wildcards: plan.depends(wildcards.notebook),
        running=f"{BUILD}/logs/{{notebook}}.ipynb",
        died="The kernel of notebook {notebook} was killed, as where memory ends: the same command goes on.",
    log:
        f"{BUILD}/logs/{{notebook}}.log",
    benchmark:
        f"{BUILD}/times/{{notebook}}.tsv"
    threads: profile.threads
    resources:
        **asks(profile.jobs.notebook),
    wildcard_constraints:
        notebook="|".join(READS),
    message:
        "notebook {wildcards.notebook} (progress: {log})"
    shell:
        '{{ "$PYTHON" -m papermill {input.source:q} {params.running:q} --kernel python3 --cwd . --log-output'
        ' --no-progress-bar --parameters_yaml "$PARAMETERS" >{log:q} 2>&1'
        " || {{ grep -q DeadKernelError {log:q} && echo {params.died:q} >{log:q}; exit 1; }}; }}"
        ' && "$PYTHON" -m lib.studies.executed {params.running:q} {output.shown:q} >>{log:q} 2>&1'
        " && mv {params.running:q} {output.executed:q}"


rule headline:
    input:
        REPORTS,
    output:
        f"{OUT}/headline.csv",
        f"{OUT}/MANIFEST.json",
    log:
        f"{BUILD}/logs/headline.log",
    message:
        "all headline numbers: {output[0]}"
    shell:
        '"$PYTHON" -m lib.studies.report "$OUT" >{log:q} 2>&1'
