"""Profiles read from `profiles/`, overrides merged onto them, refused before any work where they cannot run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lib.settings.paths import PINNED, PROFILES, model_source
from lib.settings.profile import Profile
from lib.settings.sections import Section, changed, merged, sentence

ADVICE = {  # how to come by what the paper profile names, {} being the folder
    "mdlm": ": `hf download GSAI-ML/LLaDA-V --local-dir {}` fetches LLaDA-V",
    "edits": ": `python -m lib.studies.celeba_edits --celeba FOLDER --out {}` makes edits of CelebA's faces",
    "questions.name": ": `hf download liuhaotian/LLaVA-Instruct-150K --repo-type dataset --local-dir {}` is LLaVA's",
    "questions.pictures": ": COCO's, which LLaVA asks about, are http://images.cocodataset.org/zips/train2017.zip",
    "mmmu": ": `hf download MMMU/MMMU --repo-type dataset --include '*/validation-*' --local-dir {}` fetches it",
}


def load_profile(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """The profile `profiles/<name>.yaml` with `overrides` (a nested mapping) merged onto it.

    Raises ValueError naming the profile or the field, the value given and what is allowed.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValueError(f"overrides={overrides!r} must be a mapping merged onto the profile, or None")
    check_plain(overrides or {}, "overrides")
    if (other := (overrides or {}).get("name", name)) != name:
        raise ValueError(f"name={other!r} must stay {name!r}: by it the outputs of profiles are told apart")
    values = _profile_values(name)
    try:
        return Profile.model_validate_json(json.dumps(merged(values, overrides or {})))
    except ValidationError as error:
        raise ValueError(f"profile {name!r}: " + "; ".join(map(_refusal, error.errors()))) from None


def check_plain(value: Any, field: str) -> None:
    """Raises ValueError for what JSON does not hold, as YAML's dates and keys that are no texts."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{field} has the key {key!r}: it must be a text")
            check_plain(inner, f"{field}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_plain(inner, f"{field}.{index}")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{field}={value!r} must be a text, a number, true, false, null, a list or a mapping")


def _refusal(error: Mapping[str, Any]) -> str:
    """`sentence`, less the section that a validator looks at and names again."""
    text = sentence(error).rstrip(".")
    if error["type"] != "value_error" or not isinstance(error["input"], Mapping):
        return text
    section, _, reason = text.partition(" is refused: ")
    return reason if section == "profile" or reason.startswith(section) else f"{section}: {reason}"


def _profile_values(name: str) -> dict[str, Any]:
    """What the file says, merged onto the profile that it `extends`, if any."""
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"profile {name!r} does not exist: choose one of {', '.join(names)}")
    values = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    if not isinstance(values, Mapping):
        raise ValueError(f"profile {name!r} must hold a mapping of sections, not {type(values).__name__}")
    base = values.pop("extends", None)
    return merged(_profile_values(base), values) if base is not None else values


def runnable_profile(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """As `load_profile`, and refuses models and data that are neither a folder that is there nor on the hub."""
    profile = load_profile(name, overrides)
    models = {field: getattr(profile.models, field) for field in ("clip", "editor", "control", "mdlm", "dino")}
    sources = [(f"models.{field}", name, None) for field, name in models.items() if name is not None]
    for field in ("edits", "questions", "mmmu"):
        data = getattr(profile.data, field)
        if isinstance(data, Section):
            sources.append((f"data.{field}.name", data.name, data.revision))
            if getattr(data, "pictures", None):
                sources.append((f"data.{field}.pictures", data.pictures, None))
    for field, name, revision in sources:
        if name and Path(model_source(name)).is_dir():
            continue
        if field.endswith("pictures") or not re.fullmatch(PINNED, f"{name}@{revision}" if revision else name):
            allowed = {"models": " or a hub id with its commit, as in 'openai/clip-vit-large-patch14@32bd…'"}
            allowed["data"] = "" if field.endswith("pictures") else " or a hub data set with its commit as `revision`"
            advice = next((text for key, text in ADVICE.items() if key in field), "").format(name)
            raise ValueError(f"{field}={name!r} must be a folder that is there{allowed[field.split('.')[0]]}{advice}")
    _check_size(profile)
    return profile


def _check_size(profile: Profile) -> None:
    """Raises ValueError where our own MDLM, or that of another data set, takes pictures of another size."""
    profiles = [profile]
    for other in profile.disp_grid.datasets:
        profiles.append(changed(profile, other.settings | {"disp_grid": {"datasets": []}}))
    for one in profiles:
        try:
            config = json.loads((Path(model_source(one.models.mdlm)) / "config.json").read_text())
            side = config["vision"]["image_size"] if config["model_type"] == "mdlm" else None
        except (OSError, ValueError, KeyError, TypeError):
            continue  # what loads it says what is wrong
        if side not in (None, one.data.image_size):
            raise ValueError(f"data.image_size={one.data.image_size} must be {side}, which {one.models.mdlm!r} takes")
