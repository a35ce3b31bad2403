"""Digests of what folders hold. A file is read again only where its size or one of its times has changed.

Of large folders (a model of 17 GB, 19 GB of pictures) the digests are kept below `build/` between processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from functools import lru_cache
from pathlib import Path

from lib.runtime.store import file_digest, write_atomic
from lib.settings.paths import BUILD

LARGE = 100_000_000  # bytes of a folder from which its digests are kept
TOLD = 1_000_000_000  # bytes to read from which it is told that this takes a while
SETTLED = 2_000_000_000  # ns: a file as young as that may change without another time, on some file systems

State = tuple[int, int, int]  # a file's size in bytes, and when its content and its inode have changed, in ns


def folder_digest(folder: str | os.PathLike) -> str:
    """SHA-256, in hexadecimal, of all files below `folder` but its cards (*.md); of its name if it is none."""
    root = Path(folder)
    if not root.is_dir():
        return hashlib.sha256(os.fspath(folder).encode()).hexdigest()
    digest = hashlib.sha256(b"")
    for name, content in _contents(root).items():
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def _contents(root: Path) -> dict[str, str]:
    """The digest of each file by its path below `root`, in the order of the paths."""
    files = sorted(file for file in root.rglob("*") if file.is_file() and file.suffix != ".md")
    states = {str(file.relative_to(root)): _state(file) for file in files}
    if sum(size for size, _, _ in states.values()) < LARGE:
        return {name: _read(root / name, state) for name, state in states.items()}
    kept = BUILD / "digests" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()}.json"
    known = _known(kept)
    known = {name: known[name][1] for name, state in states.items() if name in known and known[name][0] == [*state]}
    unread = sum(state[0] for name, state in states.items() if name not in known)
    if unread > TOLD:
        told = f"{root}: {unread / 1e9:.0f} GB are read once, as results depend on them"
        print(told, file=sys.stderr, flush=True)
    contents = {name: known.get(name) or _read(root / name, state) for name, state in states.items()}
    if len(known) < len(states):
        old = time.time_ns() - SETTLED
        settled = {name: [state, contents[name]] for name, state in states.items() if max(state[1:]) < old}
        write_atomic(kept, json.dumps(settled).encode())
    return contents


def _state(file: Path) -> State:
    about = file.stat()
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _known(kept: Path) -> dict[str, list]:
    """What was kept: state and digest by name; nothing where that cannot be read."""
    try:
        known = json.loads(kept.read_text())
        return {name: [state, content] for name, (state, content) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@lru_cache(maxsize=4096)
def _read(file: Path, state: State) -> str:
    """A file's digest, read once by a process while its state stays."""
    return file_digest(file)
