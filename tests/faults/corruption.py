"""Artifacts of every kind, damaged in turn: found when they are asked for, named, and made again."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from trial import Trial

from lib.runtime.store import SPEC, Store
from lib.settings.paths import BUILD

KIND = "a damaged artifact"


def trials() -> Iterator[Trial]:
    """One smallest artifact of every kind that this machine's store has. Raises FileNotFoundError for an empty one."""
    root = BUILD / "store"
    kinds = [kind for kind in sorted(root.glob("*")) if kind.name not in ("locks", "work")]
    kinds = [kind for kind in kinds if any(kind.glob("[0-9a-f]*"))]
    if not kinds:
        raise FileNotFoundError(f"{root} has no artifact: run make figures PROFILE=smoke first")
    for number, kind in enumerate(kinds):
        artifact = min(kind.glob("[0-9a-f]*"), key=size)
        damage = list(DAMAGES)[number % len(DAMAGES)]
        with tempfile.TemporaryDirectory() as name:
            yield _damaged(Path(name), artifact, damage)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _damaged(root: Path, artifact: Path, damage: str) -> Trial:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(artifact / name, path / name)

    spec = json.loads((artifact / SPEC).read_text())
    names = [n for n in json.loads((artifact / "checksums.json").read_text()) if n != SPEC]
    kind = artifact.parent.name
    Store(root).folder(kind, spec["spec"], make)
    victim = root / kind / artifact.name / sorted(names)[0]
    DAMAGES[damage](victim)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = Store(root).folder(kind, spec["spec"], make)
    said = " ".join(str(w.message) for w in caught)
    whole = all((again / name).read_bytes() == (artifact / name).read_bytes() for name in names)
    named = "is damaged" in said and artifact.name in said and "made again" in said
    return Trial(KIND, f"{kind}: {victim.name} {damage}", len(made) == 2 and whole and named, said)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "with a bit flipped": _flip,
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "swapped with its spec": lambda file: shutil.copy(file.parent / SPEC, file),
    "removed": Path.unlink,
}
