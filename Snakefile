"""The pipeline: training runs, then the notebooks that look at them, then the table of all headline numbers.

`make figures` runs it. The settings come in environment variables, as the Makefile exports them, and go to
the jobs in the same way: text with spaces and quotes passes through untouched, and a setting re-runs only
the jobs in whose `params` it makes a difference.
"""

import json
import os
import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, workflow.basedir)
from lib.config import default_out, runnable_profile
from lib.runs import profile_runs

# The sections of the profile that each job depends on: a change in another one leaves it alone.
SECTIONS = {
    "editor": ["models", "data", "collapse", "grid"],
    "further": ["models", "data", "collapse", "grid"],
    "collapse": ["models", "data", "collapse", "grid", "disp", "mdlm_collapse"],
    "mdlm": ["models", "data", "disp"],
    "few": ["models", "data", "disp", "disp_few", "disp_grid"],
    "disp": ["models", "data", "disp", "disp_grid", "mdlm_collapse", "collapse"],
    "01_poisoning": ["models", "data", "collapse", "grid", "disp"],
    "02_training": ["models", "data", "measure", "collapse", "grid", "disp"],
    "03_collapse_analysis": ["models", "data", "collapse", "grid"],
    "04_disp_purification": ["models", "data", "disp", "disp_few", "disp_grid"],
    "05_collapse_in_full": ["models", "data", "measure", "collapse", "grid", "disp", "mdlm_collapse"],
    "06_disp_in_full": ["models", "data", "disp", "disp_grid", "mdlm_collapse", "collapse"],
}
# The training runs that each notebook reads, by how their names begin.
READS = {
    "01_poisoning": (),
    "02_training": ("editor-", "mdlm-"),
    "03_collapse_analysis": ("editor-",),
    "04_disp_purification": ("mdlm-", "few-"),
    "05_collapse_in_full": ("editor-", "further-", "collapse-"),
    "06_disp_in_full": ("disp-",),
}
# The notebooks of each study; those of FULL are added with FULL=1.
STUDIES = {
    "all": ["01_poisoning", "02_training", "03_collapse_analysis", "04_disp_purification"],
    "collapse": ["03_collapse_analysis"],
    "disp": ["04_disp_purification"],
}
FULL = {"collapse": ["05_collapse_in_full"], "disp": ["06_disp_in_full"]}
FULL["all"] = FULL["collapse"] + FULL["disp"]
EXECUTORS = ("local", "slurm", "kubernetes")


def setting(name, default):
    return os.environ.get(name) or default


def number(text):
    if not text.isdecimal():
        raise ValueError(f"SEED={text!r} must be an integer from 0")
    return int(text)


def choice(name, default, allowed):
    chosen = setting(name, default)
    if chosen not in allowed:
        raise ValueError(f"{name}={chosen!r} must be one of {', '.join(allowed)}")
    return chosen


def mapping(text):
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


try:
    PROFILE = setting("PROFILE", "laptop")
    SEED = number(setting("SEED", "0"))
    DEVICE = setting("DEVICE", "cpu")
    OVERRIDES = mapping(setting("OVERRIDES", "{}"))
    EXECUTOR = choice("EXECUTOR", "local", EXECUTORS)
    STUDY = choice("STUDY", "all", STUDIES)
    IN_FULL = choice("FULL", "0", ("0", "1")) == "1"
    NOTEBOOKS = STUDIES[STUDY] + (FULL[STUDY] if IN_FULL else [])
    READS["03_collapse_analysis"] += ("further-",) * IN_FULL
    profile = runnable_profile(PROFILE, OVERRIDES)
except ValueError as error:
    sys.exit(f"make figures: {error}")
OUT = setting("OUT", os.path.relpath(default_out(PROFILE)))
BUILD = f"build/{PROFILE}"

parameters = {"profile": PROFILE, "seed": SEED, "device": DEVICE, "out": OUT, "overrides": OVERRIDES}
os.environ.update(
    PYTHONPATH=workflow.basedir,
    PYTHON=sys.executable,
    PROFILE=PROFILE,
    SEED=str(SEED),
    DEVICE=DEVICE,
    OUT=OUT,
    OVERRIDES=json.dumps(OVERRIDES),
    PARAMETERS=yaml.safe_dump(parameters),  # for papermill, which reads YAML: in JSON's 1e-05 it sees a text
)
GPU = {"gpu": 1} if DEVICE.startswith("cuda") else {}

known = list(profile_runs(profile))
CODE = sorted(str(file) for file in Path("lib").rglob("*.py"))
CHECKPOINTS = sorted(str(file) for file in Path("data/checkpoints").rglob("*.*") if file.suffix != ".md")


def depends(job):
    return json.dumps({"seed": SEED, "device": DEVICE}) + profile.sections(*SECTIONS[job])


def asks(job):
    """The resources of a rule: what the profile says, and that again at every further attempt."""
    return {
        "mem_mb": lambda wildcards, attempt: attempt * job.memory_mb,
        "runtime": lambda wildcards, attempt: attempt * job.minutes,
    } | GPU


def markers(notebook):
    return [f"{BUILD}/runs/{run}.json" for run in known if run.startswith(READS[notebook])]


def first(run):
    """The run whose model this one begins with: before it, it would wait for it, and a core with it."""
    same = ("few-seed", "few-ablation", f"few-rate-{profile.disp.rate:g}-", f"few-target-{profile.disp.target}-")
    return f"{BUILD}/runs/mdlm-poisoned.json" if run.startswith(same) else []


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


rule all:
    input:
        f"{OUT}/headline.csv",


rule run:
    input:
        CODE,
        CHECKPOINTS,
        lambda wildcards: first(wildcards.run),
    output:
        f"{BUILD}/runs/{{run}}.json",
    params:
        lambda wildcards: depends(wildcards.run.split("-")[0]),
    log:
        f"{BUILD}/logs/{{run}}.log",
    benchmark:
        f"{BUILD}/times/{{run}}.tsv"
    threads: profile.threads
    resources:
        **asks(profile.jobs.run),
    wildcard_constraints:
        run="|".join(re.escape(run) for run in known if run != "mdlm-poisoned"),
    message:
        "training {wildcards.run} (progress: {log})"
    shell:
        '"$PYTHON" -m lib.runs {wildcards.run} --profile "$PROFILE" --seed "$SEED" --device "$DEVICE"'
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
        lambda wildcards: markers(wildcards.notebook),
        source="notebooks/{notebook}.ipynb",
    output:
        f"{OUT}/{{notebook}}/headline.csv",
        f"{OUT}/{{notebook}}/manifest.json",
        executed=f"{BUILD}/notebooks/{{notebook}}.ipynb",
    params:
        lambda wildcards: depends(wildcards.notebook),
        running=f"{BUILD}/logs/{{notebook}}.ipynb",
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
        '"$PYTHON" -m papermill {input.source:q} {params.running:q} --kernel python3 --cwd . --log-output'
        ' --no-progress-bar --parameters_yaml "$PARAMETERS" >{log:q} 2>&1'
        " && mv {params.running:q} {output.executed:q}"


rule headline:
    input:
        expand(f"{OUT}/{{notebook}}/{{file}}", notebook=NOTEBOOKS, file=["headline.csv", "manifest.json"]),
    output:
        f"{OUT}/headline.csv",
        f"{OUT}/MANIFEST.json",
    log:
        f"{BUILD}/logs/headline.log",
    message:
        "all headline numbers: {output[0]}"
    shell:
        '"$PYTHON" -m lib.report "$OUT" >{log:q} 2>&1'
