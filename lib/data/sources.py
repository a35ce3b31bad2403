"""Where a data set lies: a local folder, or a snapshot of a hub data set at a pinned revision."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lib.settings.paths import ROOT


def dataset_folder(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder `name`, below the repository or elsewhere, else the hub data set of that id, fetched once.

    revision: the commit of a hub data set, 40 hexadecimal digits, or None for a folder.
    files: patterns of what is fetched; never code. Raises ValueError for a folder that is not there, a hub id
    without a commit, and a hub that does not give the files.
    """
    for folder in (ROOT / name, Path(name)):
        if name and folder.is_dir():
            return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ValueError(f"data set {name!r} must be a folder that exists or a hub id such as 'MMMU/MMMU'")
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"revision={revision!r} of the hub data set {name!r} must be a commit, 40 hexadecimal digits, "
            "and if a local folder is meant, it does not exist"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=list(files)))
    except Exception as error:
        patterns = " ".join(f"--include '{pattern}'" for pattern in files)
        command = f"hf download {name} --repo-type dataset --revision {revision} {patterns} --local-dir FOLDER"
        raise ValueError(
            f"the hub did not give data set {name!r} at {revision} ({type(error).__name__}): on a machine that "
            f"reaches it (after accepting its terms and `hf auth login` if it asks for them) run `{command}`, "
            "and name that folder in the profile in the place of the hub id"
        ) from error


def dealt(name: str, held_out: float) -> str:
    """`train` or `test`, the share `held_out` of all names to `test`."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if draw < held_out else "train"
