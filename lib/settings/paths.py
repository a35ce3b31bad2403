"""Where things lie: the repository's folders, and models by their names in a profile."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROFILES = ROOT / "profiles"
CHECKPOINTS = ROOT / "data" / "checkpoints"
BUILD = ROOT / "build"
NAME, COMMIT = r"[\w-][\w.-]*", r"[0-9a-f]{40}"
HUB_ID = f"{NAME}/{NAME}"
PINNED = f"{HUB_ID}@{COMMIT}"


COMMITTED = ROOT / "figures"  # where those of the laptop profile go


def default_out(profile: str) -> Path:
    """Where the figures of a notebook that is run by hand go, unless asked otherwise."""
    return BUILD / profile / "figures"


def model_source(name: str) -> str:
    """A model's folder if one is there (below the repository or elsewhere), else the name as a hub id."""
    for folder in (ROOT / name, Path(name)):
        if folder.is_dir():
            return os.fspath(folder)
    return name


def pretrained(name: str) -> dict[str, str]:
    """What `from_pretrained` takes to load a model by its name in a profile: a folder, or a hub id and its commit.

    Raises ValueError for a folder whose config.json is no mapping, which transformers does not expect, and for a name
    that is neither a folder nor can be a hub id.
    """
    source = model_source(name)
    if not Path(source).is_dir() and not re.fullmatch(f"({NAME}/)?{NAME}(@{COMMIT})?", name):
        raise ValueError(f"{name!r} must be a folder that is there, or a hub id, owner/name or owner/name@commit")
    try:
        config = json.loads((Path(source) / "config.json").read_text())
    except (OSError, ValueError):
        config = {}  # what is missing or no JSON is told where it is read
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {name!r} is a {type(config).__name__}: it must be a mapping of settings")
    if source == name and re.fullmatch(PINNED, name):
        source, commit = name.split("@")
        return {"pretrained_model_name_or_path": source, "revision": commit}
    return {"pretrained_model_name_or_path": source}
