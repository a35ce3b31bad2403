"""Which profile, paths, seed and device a run has: everything that differs from one run to the next."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from lib.profile import Profile, Section, changed, merged, sentence

if TYPE_CHECKING:
    import torch

    from lib.store import Store

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles"
CHECKPOINTS = ROOT / "data" / "checkpoints"
BUILD = ROOT / "build"

PINNED = r"[\w-][\w.-]*/[\w-][\w.-]*@[0-9a-f]{40}"
ADVICE = {  # how to come by what the paper profile names, {} being the folder
    "mdlm": ": `hf download GSAI-ML/LLaDA-V --local-dir {}` fetches LLaDA-V",
    "edits": ": `python -m lib.celeba_edits --celeba FOLDER --out {}` makes edits of CelebA's faces",
    "questions.name": ": `hf download liuhaotian/LLaVA-Instruct-150K --repo-type dataset --local-dir {}` is LLaVA's",
    "questions.pictures": ": COCO's, which LLaVA asks about, are http://images.cocodataset.org/zips/train2017.zip",
    "mmmu": ": `hf download MMMU/MMMU --repo-type dataset --include '*/validation-*' --local-dir {}` fetches it",
}


@dataclass(frozen=True)
class Run:
    """What a notebook works with: one profile, seed, device, output folder and store."""

    profile: Profile
    seed: int
    device: torch.device
    out: Path
    store: Store
    notebook: str = ""


def load_profile(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """The profile `profiles/<name>.yaml` with `overrides` (a nested mapping) merged onto it.

    Raises ValueError naming the profile or the field, the value given and what is allowed.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValueError(f"overrides={overrides!r} must be a mapping merged onto the profile, or None")
    values = _profile_values(name)
    try:
        return Profile.model_validate_json(json.dumps(merged(values, overrides or {})))
    except ValidationError as error:
        raise ValueError(f"profile {name!r}: " + "; ".join(map(sentence, error.errors()))) from None


def _profile_values(name: str) -> dict[str, Any]:
    """What the file says, merged onto the profile that it `extends`, if any."""
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"profile {name!r} does not exist: choose one of {', '.join(known)}")
    values = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    if not isinstance(values, Mapping):
        raise ValueError(f"profile {name!r} must hold a mapping of sections, not {type(values).__name__}")
    own = {key: value for key, value in values.items() if key != "extends"}
    return merged(_profile_values(values["extends"]), own) if "extends" in values else own


def runnable_profile(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """As `load_profile`, and refuses models and data that are neither a folder that is there nor on the hub."""
    profile = load_profile(name, overrides)
    models = {field: getattr(profile.models, field) for field in ("clip", "editor", "control", "mdlm", "dino")}
    named = [(f"models.{field}", given, None) for field, given in models.items() if given is not None]
    for field in ("edits", "questions", "mmmu"):
        given = getattr(profile.data, field)
        if isinstance(given, Section):
            named.append((f"data.{field}.name", given.name, given.revision))
            if getattr(given, "pictures", None):
                named.append((f"data.{field}.pictures", given.pictures, None))
    for field, given, revision in named:
        if given and Path(model_source(given)).is_dir():
            continue
        if field.endswith("pictures") or not re.fullmatch(PINNED, f"{given}@{revision}" if revision else given):
            allowed = {"models": " or a hub id with its commit, as in 'openai/clip-vit-large-patch14@32bd…'"}
            allowed["data"] = "" if field.endswith("pictures") else " or a hub data set with its commit as `revision`"
            advice = next((text for key, text in ADVICE.items() if key in field), "").format(given)
            raise ValueError(f"{field}={given!r} must be a folder that is there{allowed[field.split('.')[0]]}{advice}")
    return profile


def run_parameters(
    notebook: str,
    profile: str,
    seed: int,
    device: str,
    out: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Check a notebook's papermill parameters before any work and set threads and seeds.

    `out` is where figures go: `figures/` for the laptop profile, else `build/<profile>/figures`.
    Raises ValueError naming the parameter, its value and what is allowed.
    """
    chosen = runnable_profile(profile, overrides)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2**31 - 1")
    if out is not None and (not isinstance(out, str) or not out or Path(out).is_file()):
        raise ValueError(f"out={out!r} must be the name of a folder, which is made if it does not exist")
    import torch

    from lib.store import Store

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    folder = Path(out) if out else default_out(chosen.name)
    return Run(chosen, seed, resolve_device(device), folder.resolve(), Store(BUILD / "store"), notebook)


def default_out(profile: str) -> Path:
    """Where the figures of a profile go unless asked otherwise; the laptop's are committed."""
    return ROOT / "figures" if profile == "laptop" else BUILD / profile / "figures"


def resolve_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, `mps` or `auto` (a GPU when there is one) as a device that is there."""
    import torch

    if not isinstance(name, str):
        raise ValueError(f"device={name!r} must be a string such as 'cpu', 'cuda' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device={name!r} is not a device: use 'cpu', 'cuda', 'cuda:<n>', 'mps' or 'auto'"
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ValueError(f"device={name!r} is not on this machine: use 'cpu' or 'auto'")
    return device


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator of its own for each use: seeded by the hash of the seed and the labels."""
    import torch

    digest = hashlib.sha256(json.dumps([seed, *labels]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def model_source(name: str) -> str:
    """A model's folder if one is there (below the repository or elsewhere), else the name as a hub id."""
    for folder in (ROOT / name, Path(name)):
        if folder.is_dir():
            return os.fspath(folder)
    return name


def pretrained(name: str) -> dict[str, str]:
    """What `from_pretrained` takes to load a model by its name in a profile: a folder, or a hub id and its commit."""
    source = model_source(name)
    if source == name and re.fullmatch(PINNED, name):
        source, commit = name.split("@")
        return {"pretrained_model_name_or_path": source, "revision": commit}
    return {"pretrained_model_name_or_path": source}


def with_settings(run: Run, section: str, settings: Mapping[str, Any], seed: int = 0) -> Run:
    """The run with `settings` merged onto that section of its profile, and `seed` added to its seed."""
    update = {section: changed(getattr(run.profile, section), settings)}
    return replace(run, seed=run.seed + seed, profile=run.profile.model_copy(update=update))


def with_profile(run: Run, settings: Mapping[str, Any], seed: int = 0) -> Run:
    """The run with `settings` merged onto its whole profile, and `seed` added to its seed."""
    return replace(run, seed=run.seed + seed, profile=changed(run.profile, settings))
