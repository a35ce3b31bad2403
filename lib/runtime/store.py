"""Artifacts on disk: each is computed once, found again by what it was made from, and whole or absent.

    store = Store(BUILD / "store")
    spec = {"concepts": 64, "size": 32, "code": code_digest(__name__)}    # of `lib.runtime.keys`
    pictures = store.tensors("pictures", spec, lambda: {"images": render(64, 32)})

An artifact is a folder `root/kind/key`, where `key` is the SHA-256 of its kind and its `spec`, the
JSON-able mapping of everything its content depends on. It is made in a temporary folder beside that one,
written through to the disk and renamed, so a kill at any moment leaves nothing half made. Each file's
SHA-256 is kept with it and compared when a process first uses the artifact: a damaged one is made again,
with a warning. Two processes that want the same artifact make it once; the second waits. The processes of one
launch (`lib.runtime.processes`) make it together.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout

from lib.runtime.processes import barrier, count, rank, told

if TYPE_CHECKING:
    import pandas
    import torch

SPEC, CHECKSUMS = "spec.json", "checksums.json"
THERE, MISSING, WAIT = range(3)  # what the first process of a launch tells the others of an artifact
PULSE = 60.0  # seconds between two words to those that wait with it


class Store:
    """Get-or-make of artifacts below the folder `root`, which is created at first use.

    Every method takes the artifact's `kind` (letters, digits, `-`, `_` and `.`) and its `spec` (a mapping
    of strings, finite numbers, booleans, None, and lists and mappings of these) and raises ValueError for
    others. Numbers are told apart as JSON writes them: 1 and 1.0 are two specs.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self._whole: set[Path] = set()

    def key(self, kind: str, spec: Mapping[str, Any]) -> str:
        """SHA-256, in hexadecimal, of the kind and the spec, whatever the order of mappings in it."""
        return hashlib.sha256(_canonical(kind, spec)).hexdigest()

    def has(self, kind: str, spec: Mapping[str, Any]) -> bool:
        """Whether the artifact is there, damaged or not."""
        return (self.root / kind / self.key(kind, spec)).is_dir()

    def folder(self, kind: str, spec: Mapping[str, Any], make: Callable[[Path], Any]) -> Path:
        """The artifact's folder, filled by `make(path)`, which gets an empty folder, where there is none yet.

        Whoever receives it reads only. An exception of `make` goes through and leaves no artifact; what it
        put into `work(kind, spec)` stays for the next attempt and is removed when the artifact is finished.
        All processes of a launch call `make`; what the first one writes is kept.
        Raises ValueError when `make` writes nothing, or a file named spec.json or checksums.json at the top.
        """
        content = _canonical(kind, spec)
        key = hashlib.sha256(content).hexdigest()
        path = self.root / kind / key
        if path in self._whole and path.is_dir():
            return path
        if rank():
            _make_along(path, make)
            self._whole.add(path)
            return path
        with exclusive(self._lock(kind, key), f"the {kind} {key[:12]} is being made by another process"):
            fault = _fault(path, content)
            told(MISSING if fault else THERE)
            if fault:
                if path.exists():
                    warnings.warn(f"{path} is damaged ({fault}); it is made again.", stacklevel=2)
                self._make(path, content, make)
                barrier()
            shutil.rmtree(self._work(kind, key), ignore_errors=True)
        self._whole.add(path)
        return path

    def tensors(
        self, kind: str, spec: Mapping[str, Any], make: Callable[[], Mapping[str, "torch.Tensor"]]
    ) -> dict[str, "torch.Tensor"]:
        """The artifact's tensors by name, on the CPU, as `make()` returned them (safetensors)."""

        def save(path: Path) -> None:
            import torch
            from safetensors.torch import save_file

            tensors = dict(make())
            for name, tensor in tensors.items():
                if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                    got = type(tensor).__name__
                    raise ValueError(f"{kind}.{name} is a {got}; allowed are named tensors.")
            plain = {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
            save_file(plain, path / "tensors.safetensors")

        folder = self.folder(kind, spec, save)
        from safetensors.torch import load_file

        return load_file(folder / "tensors.safetensors")

    def table(
        self, kind: str, spec: Mapping[str, Any], make: Callable[[], "pandas.DataFrame"]
    ) -> "pandas.DataFrame":
        """The artifact's table, as `make()` returned it, kept as CSV.

        Raises ValueError when the CSV would not give the same table back: an index other than 0, 1, …, no
        column, or values that text cannot tell apart, such as "" and a missing one.
        """

        def save(path: Path) -> None:
            import pandas

            table = make()
            table.to_csv(path / "table.csv", index=False)
            try:
                pandas.testing.assert_frame_equal(_read_csv(path / "table.csv"), table, check_dtype=False)
            except (AssertionError, ValueError) as difference:
                reason = " ".join(str(difference).split())
                raise ValueError(f"{kind} is a table that a CSV file does not hold: {reason}") from None

        return _read_csv(self.folder(kind, spec, save) / "table.csv")

    def work(self, kind: str, spec: Mapping[str, Any]) -> Path:
        """A folder for the partial work of `make`: it outlives a kill and goes when the artifact is finished.

        Only to be used inside that artifact's `make`, where no other process is at it.
        """
        path = self._work(kind, self.key(kind, spec))
        if path.is_file():
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _work(self, kind: str, key: str) -> Path:
        return self.root / "work" / kind / key

    def _lock(self, kind: str, key: str) -> Path:
        """Where the artifacts really are: stores that share a kind by a link share its locks."""
        return (self.root / kind).resolve().parent / "locks" / key

    def _make(self, path: Path, content: bytes, make: Callable[[Path], Any]) -> None:
        """Fill `path` through a temporary folder beside it; the caller holds the lock of its key."""
        temporary = path.with_name(f".{path.name}.tmp")
        _remove(temporary)
        temporary.mkdir(parents=True)
        try:
            make(temporary)
            files = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
            names = [file.relative_to(temporary).as_posix() for file in files]
            if not names or SPEC in names or CHECKSUMS in names:
                raise ValueError(f"make wrote {names}; allowed are any files but {SPEC} and {CHECKSUMS}.")
            (temporary / SPEC).write_bytes(content)
            digests = {name: file_digest(temporary / name) for name in [*names, SPEC]}
            (temporary / CHECKSUMS).write_text(json.dumps(digests, indent=1))
            for written in [*temporary.rglob("*"), temporary]:
                _sync(written)
            _remove(path)
            temporary.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Write a file that holds, at any moment and after any kill, its old content or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock file `path`; while another process has it, say `waiting` once and wait.

    The kernel lets go of the lock when its holder ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{waiting}; waiting for it to end.", file=sys.stderr, flush=True)
        _wait(lock)
    try:
        yield
    finally:
        lock.release()


def _wait(lock: FileLock) -> None:
    """Until the lock is free; the other processes of this launch hear now and then that it is not."""
    while count() > 1:
        told(WAIT)
        with suppress(Timeout):
            lock.acquire(timeout=PULSE)
            return
    lock.acquire()


def _make_along(path: Path, make: Callable[[Path], Any]) -> None:
    """What the other processes of a launch do for the artifact at `path`: the same, but nothing is kept of it."""
    while (word := told(WAIT)) == WAIT:
        pass
    if word == MISSING:
        scratch = path.with_name(f".{path.name}.{rank()}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            make(scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        barrier()


def _canonical(kind: str, spec: Mapping[str, Any]) -> bytes:
    if not isinstance(kind, str) or not kind.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError(f"kind is {kind!r}; allowed are names of letters, digits, '-', '_' and '.'.")
    if kind.startswith(".") or kind in ("locks", "work"):
        raise ValueError(f"kind is {kind!r}; allowed are names but 'locks', 'work' and '.…'.")
    if not isinstance(spec, Mapping):
        raise ValueError(f"spec is a {type(spec).__name__}; allowed is a mapping.")
    plain = {"kind": kind, "spec": _plain(spec, "spec")}
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any, field: str) -> Any:
    """`value` as JSON's own types; refuses what JSON would change or not hold, by the name of its field."""
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{field}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"{field} has the key {name!r}; allowed are strings.")
        return {name: _plain(item, f"{field}.{name}") for name, item in value.items()}
    raise ValueError(
        f"{field} is {value!r}, a {type(value).__name__}; allowed are strings, finite numbers, booleans, "
        "None, lists and mappings."
    )


def _fault(path: Path, content: bytes) -> str | None:
    """What is wrong with the artifact at `path`, or None when all of it is as it was written."""
    try:
        digests = json.loads((path / CHECKSUMS).read_text())
        if (path / SPEC).read_bytes() != content:
            return f"{SPEC} is another"
        if not isinstance(digests, dict):
            return f"{CHECKSUMS} cannot be read"
        files = {file.relative_to(path) for file in path.rglob("*") if file.is_file()}
        seen = {file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts)}
        if extra := sorted(seen - {*digests, CHECKSUMS}):  # hidden ones are the file system's or an editor's
            return f"{extra[0]} is not of it"
        for name, digest in digests.items():
            if file_digest(path / name) != digest:
                return f"{name} has changed"
    except FileNotFoundError as missing:
        return f"{Path(missing.filename).name} is missing"
    except (ValueError, AttributeError, OSError):
        return f"{CHECKSUMS} cannot be read"
    return None


def _remove(path: Path) -> None:
    """What is there, a folder or a file, if anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_digest(file: Path) -> str:
    """SHA-256, in hexadecimal, of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_csv(file: Path) -> "pandas.DataFrame":
    import pandas

    return pandas.read_csv(file, keep_default_na=False, na_values=[""])


def _run_alone(lock: Path, command: list[str]) -> NoReturn:
    """Become a command that no other process runs under this lock: it has it for as long as it lives."""
    import fcntl

    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another run is at work in this folder; waiting for it to end.", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.execvp(command[0], command)


if __name__ == "__main__":  # python -m lib.runtime.store LOCK COMMAND...: one such command at a time
    try:
        _run_alone(Path(sys.argv[1]), sys.argv[2:])
    except OSError as error:
        sys.exit(f"the lock {sys.argv[1]} cannot be taken ({error}): its folder must be one that can be written to")
