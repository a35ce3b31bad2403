"""What `make figures` runs: a study's notebooks, the training runs that each reads, the settings that each follows.

    plan = planned(os.environ)      # refuses bad settings in one sentence
    plan.runs("03_collapse_analysis")
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.settings.load import runnable_profile
from lib.settings.paths import COMMITTED, default_out
from lib.settings.profile import Profile
from lib.studies.cases import first_attacks
from lib.studies.runs import profile_runs
from lib.studies.sources import sources

# The sections of the profile that each job depends on: a change in another one leaves it alone.
SECTIONS = {
    "editor": ["models", "data", "collapse", "grid"],
    "further": ["models", "data", "collapse", "grid"],
    "collapse": ["models", "data", "collapse", "grid", "disp", "mdlm_collapse"],
    "mdlm": ["models", "data", "disp"],
    "few": ["models", "data", "disp", "disp_few", "disp_grid"],
    "disp": ["models", "data", "disp", "disp_grid", "mdlm_collapse", "collapse"],
    "00_quickstart": [],
    "01_poisoning": ["models", "data", "collapse", "grid", "disp"],
    "02_training": ["models", "data", "measure", "collapse", "grid", "disp"],
    "03_collapse_analysis": ["models", "data", "collapse", "grid"],
    "04_disp_purification": ["models", "data", "disp", "disp_few", "disp_grid"],
    "05_collapse_in_full": ["models", "data", "measure", "collapse", "grid", "disp", "mdlm_collapse"],
    "06_disp_in_full": ["models", "data", "disp", "disp_grid", "mdlm_collapse", "collapse"],
}
FIRST = "first attacks"  # those of `first_attacks`
# The training runs that each notebook reads: FIRST, or by how their names begin.
READS = {
    "00_quickstart": (),
    "01_poisoning": (),
    "02_training": (FIRST, "mdlm-"),
    "03_collapse_analysis": ("editor-",),
    "04_disp_purification": ("mdlm-", "few-"),
    "05_collapse_in_full": ("editor-", "further-", "collapse-"),
    "06_disp_in_full": ("disp-",),
}
# Those that it reads with FULL=1 beside them, and else from a committed table (`lib.studies.further`).
FURTHER = {"03_collapse_analysis": ("further-",), "04_disp_purification": ("disp-headline-",)}
# The notebooks of each study; those of FULL are added with FULL=1.
STUDIES = {
    "all": ("00_quickstart", "01_poisoning", "02_training", "03_collapse_analysis", "04_disp_purification"),
    "collapse": ("03_collapse_analysis",),
    "disp": ("04_disp_purification",),
}
FULL = {"collapse": ("05_collapse_in_full",), "disp": ("06_disp_in_full",)}
FULL["all"] = FULL["collapse"] + FULL["disp"]
DEVICE = "auto|cpu|mps|cuda(:[0-9]+)?"
EXECUTORS = ("local", "slurm", "kubernetes")


@dataclass(frozen=True)
class Plan:
    """The settings of one call of the pipeline, as the Makefile exports them, and what follows from them."""

    profile: Profile
    seed: int
    device: str
    overrides: Mapping[str, Any]
    out: str
    notebooks: tuple[str, ...]
    in_full: bool
    known: tuple[str, ...]
    sources: Mapping[str, str]  # digests of models and data, by where the profile names them

    @property
    def build(self) -> str:
        """Where logs and marks of finished jobs go."""
        return f"build/{self.profile.name}"

    def environment(self) -> dict[str, str]:
        """What jobs get: text with spaces and quotes passes through untouched."""
        parameters = {"profile": self.profile.name, "seed": self.seed, "device": self.device}
        parameters |= {"out": self.out, "overrides": dict(self.overrides)}
        return {
            "PROFILE": self.profile.name,
            "SEED": str(self.seed),
            "DEVICE": self.device,
            "OUT": self.out,
            "OVERRIDES": json.dumps(self.overrides),
            "PARAMETERS": yaml.safe_dump(parameters),  # for papermill, which reads YAML: in JSON's 1e-05 it sees a text
        }

    def depends(self, job: str) -> str:
        """What a job of that name, or of a name that begins so, follows from beside its inputs."""
        sections = SECTIONS[job if job in SECTIONS else job.split("-")[0]]
        own = {name: digest for name, digest in self.sources.items() if name.split(".")[0] in sections}
        others = {name: digest for name, digest in self.sources.items() if ": " in name}
        held = own | (others if "disp_grid" in sections else {})
        settings = {"seed": self.seed, "device": self.device, "sources": held}
        return json.dumps(settings, sort_keys=True) + self.profile.sections(*sections)

    def runs(self, notebook: str) -> list[str]:
        """The training runs that the notebook reads."""
        further = FURTHER.get(notebook, ()) if self.in_full else ()
        first = {attack.name for attack in first_attacks(self.profile)} if FIRST in READS[notebook] else set()
        return [run for run in self.known if run in first or run.startswith(READS[notebook] + further)]

    def first(self, run: str) -> str | None:
        """The run whose model this one begins with: before it, it would wait for it, and a core with it."""
        rate, target = self.profile.disp.rate, self.profile.disp.target
        same = ("few-seed", "few-ablation", f"few-rate-{rate:g}-", f"few-target-{target}-")
        return "mdlm-poisoned" if run.startswith(same) else None


def planned(environment: Mapping[str, str]) -> Plan:
    """The plan of these environment variables. Raises ValueError naming the variable, its value and what is allowed."""

    def setting(name: str, default: str) -> str:
        return environment.get(name) or default

    def choice(name: str, default: str, allowed: Any) -> str:
        if (chosen := setting(name, default)) not in allowed:
            raise ValueError(f"{name}={chosen!r} must be one of {', '.join(allowed)}")
        return chosen

    name, seed, overrides = setting("PROFILE", "laptop"), setting("SEED", "0"), _mapping(setting("OVERRIDES", "{}"))
    if not re.fullmatch("[0-9]{1,10}", seed) or int(seed) >= 2**31:
        raise ValueError(f"SEED={seed!r} must be an integer from 0 to 2**31 - 1")
    if not re.fullmatch(DEVICE, device := setting("DEVICE", "cpu")):
        raise ValueError(f"DEVICE={device!r} must be one of auto, cpu, cuda, cuda:<n>, mps")
    choice("EXECUTOR", "local", EXECUTORS)
    study, in_full = choice("STUDY", "all", STUDIES), choice("FULL", "0", ("0", "1")) == "1"
    profile = runnable_profile(name, overrides)
    out = setting("OUT", os.path.relpath(COMMITTED if name == "laptop" else default_out(name)))
    if re.search(r"[{}\n]", out):
        raise ValueError(f"OUT={out!r} must be the name of a folder without braces and line ends")
    _check_folder("OUT", Path(out))
    _check_folder("build", Path("build"))
    return Plan(
        profile=profile,
        seed=int(seed),
        device=device,
        overrides=overrides,
        out=out,
        notebooks=STUDIES[study] + FULL[study] * in_full,
        in_full=in_full,
        known=tuple(profile_runs(profile)),
        sources=sources(profile),
    )


def _mapping(text: str) -> Any:
    """JSON or YAML. Raises ValueError where the text is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        raise ValueError(f"OVERRIDES={text!r} must be a mapping in JSON or YAML") from None


def _check_folder(name: str, folder: Path) -> None:
    """Raises ValueError where the folder is a file, or one that is there or would be made cannot be written to."""
    there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name}={str(folder)!r} must be a folder that can be written to, which {str(there)!r} is not")
