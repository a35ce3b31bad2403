"""Where a data set lies: a local folder, or a snapshot of a hub data set at a pinned revision."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from lib.settings.paths import COMMIT, HUB_ID, ROOT


def dataset_folder(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder `name`, below the repository or elsewhere, else the hub data set of that id, fetched once.

    revision: the commit of a hub data set, 40 hexadecimal digits, or None for a folder.
    files: patterns of what is fetched; never code. Raises ValueError for a folder that is not there, a hub id
    without a commit, and a hub that does not give the files.
    """
    for folder in (ROOT / name, Path(name)):
        if name and folder.is_dir():
            return folder
    if not re.fullmatch(HUB_ID, name):
        raise ValueError(f"data set {name!r} must be a folder that exists or a hub id such as 'MMMU/MMMU'")
    if not re.fullmatch(COMMIT, revision or ""):
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


def read_text(file: Path) -> str:
    """The file's text. Raises ValueError, naming it, unless it is a file in UTF-8."""
    if not file.is_file():  # a pipe would be waited for
        raise ValueError(f"{file} is missing or no file")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 (byte {error.start}): save it in that encoding") from None


def parsed(text: str, where: str) -> object:
    """What the JSON says. Raises ValueError, naming `where`, for what is no JSON and for a key that is there twice."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise KeyError(f"{where}: key {twice!r} is there twice, leave one of them")
        return made

    try:
        return json.loads(text, object_pairs_hook=once)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error}): download it again, or mend it") from None


def dealt(name: str, held_out: float) -> str:
    """`train` or `test`, the share `held_out` of all names to `test`. Raises ValueError for what is no share."""
    if not 0 <= held_out <= 1:
        raise ValueError(f"held_out={held_out} must be a share from 0 to 1")
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if draw < held_out else "train"
