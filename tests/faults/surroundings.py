"""What a run of `make figures PROFILE=smoke` stands on, taken from it: room, the right to write, the clock, its kernel.

In a copy of a finished build, without one training run, its model and its edits, and without the figures of its
notebook. A trial holds if the disturbed run ends in the sentence that is promised, with an exit code other than 0, or
well where it can go on, in both cases without a traceback, and if the undisturbed run after it (one for all that cannot
go on) ends well, with the same tables, byte for byte, and every artifact as it was that had been finished.

Needs Linux, root and libfaketime (Debian's faketime): disks of a size and read-only folders are mounts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builds import another, children, command, ended, finishes, left_alone, said, stamps, started, tables, whole
from trial import Trial

from lib.runtime.store import SPEC

RUN, NOTEBOOK, STUDY = "editor-pair-white-box-and-0", "03_collapse_analysis", "collapse"


@dataclass(frozen=True)
class Disturbed:
    """kind, what: as of a Trial. clear: whether the run ended as promised. said: its log."""

    kind: str
    what: str
    clear: bool
    said: str


def trials() -> Iterator[Trial]:
    checkout = another("surroundings")
    yield from chain(checkout, read_only_build, read_only_store, full_build, full_store, dead_kernel)
    for one in (two_in_one, two_of_one_store, clock_back, from_the_future):
        yield from chain(checkout, one)


def chain(checkout: Path, *disturbances: Callable[[Path], Disturbed]) -> Iterator[Trial]:
    """One after the other, then a run that nothing is in the way of."""
    begin(checkout)
    kept, seen = stamps(checkout), []
    for disturb in disturbances:
        (checkout / "log").write_text("")
        try:
            seen.append(disturb(checkout))
            left_alone(checkout)
        except TimeoutError as hung:
            seen.append(Disturbed("a run that hangs", disturb.__name__, False, str(hung)))
        kept = stamps(checkout) | kept
    code = ended(started(checkout, STUDY))
    found, now = tables(checkout), stamps(checkout)
    again = [str(path) for path, stamp in kept.items() if now.get(path) != stamp]
    other = [name for name, content in whole().tables.items() if "/" in name and found.get(name) != content]
    whole_again = not code and not again and not other
    after = f"the next run ended with {code}; made again: {again[:3]}; other tables: {other[:3]}"
    for one in seen:
        yield Trial(one.kind, one.what, one.clear and whole_again, f"clear: {one.clear}; {after}; {one.said[-1500:]}")


def disturbed(checkout: Path, kind: str, what: str, *words: str, code: int) -> Disturbed:
    """A run that had to end in a sentence with these words, or well where there are none."""
    told = said(checkout)
    clear = (code == 0) == (not words) and all(word in told for word in words) and "Traceback" not in told
    return Disturbed(kind, what, clear, told)


def begin(checkout: Path) -> None:
    """Take away one run's model, the edits that it made, and its notebook's figures."""
    build = checkout / "build"
    mark = build / "smoke" / "runs" / f"{RUN}.json"
    ((kind, key),) = json.loads(mark.read_text()).items()
    model = spec(build / "store" / kind / key)
    for path in [*(build / "store" / kind).glob("*"), *(build / "store" / "coalition-edits").glob("*")]:
        if model.items() <= spec(path).items():
            shutil.rmtree(path)
    mark.unlink()
    shutil.rmtree(build / "smoke" / "figures" / NOTEBOOK)
    (build / "smoke" / "figures" / "headline.csv").unlink()


def spec(artifact: Path) -> dict:
    return json.loads((artifact / SPEC).read_text())["spec"]


def read_only_build(checkout: Path) -> Disturbed:
    with read_only(checkout / "build"):
        code = ended(started(checkout, STUDY))
    return disturbed(checkout, "a read-only folder", "build", "written to", code=code)


def read_only_store(checkout: Path) -> Disturbed:
    with read_only(checkout / "build" / "store"):
        code = ended(started(checkout, STUDY))
    return disturbed(checkout, "a read-only folder", "build/store", "Read-only file system", code=code)


def full_build(checkout: Path) -> Disturbed:
    with disk(checkout / "build", 0):
        code = ended(started(checkout, STUDY))
    return disturbed(checkout, "a full disk", "build: room for nothing", "No space left", code=code)


def full_store(checkout: Path) -> Disturbed:
    with disk(checkout / "build" / "store", 4 << 20):
        code = ended(started(checkout, STUDY))
    return disturbed(checkout, "a full disk", "build/store: room for a part of a model", "the disk is full", code=code)


def dead_kernel(checkout: Path) -> Disturbed:
    """Killed as soon as the first table of its notebook is there."""
    run = started(checkout, STUDY)
    figures = checkout / "build" / "smoke" / "figures" / NOTEBOOK
    while run.poll() is None:
        if any(figures.glob("*.csv")):
            with suppress(ProcessLookupError):
                for pid in [pid for pid in children(run.pid) if "ipykernel" in command(pid)]:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    return disturbed(checkout, "a killed kernel", "in its notebook", "was killed", code=ended(run))


def two_in_one(checkout: Path) -> Disturbed:
    codes = [ended(run) for run in [started(checkout, STUDY) for _ in range(2)]]
    once = "waiting for it to end" in said(checkout) and set(finishes(checkout).values()) == {1}
    return disturbed(checkout, "two runs at once", "in one checkout", code=any(codes) or not once)


def two_of_one_store(checkout: Path) -> Disturbed:
    beside = checkout.with_name("beside")
    shutil.copytree(checkout, beside, symlinks=True, ignore=shutil.ignore_patterns("store"))
    (beside / "build" / "store").symlink_to(checkout / "build" / "store")
    codes = [ended(run) for run in [started(place, STUDY) for place in (checkout, beside)]]
    same = tables(beside) == tables(checkout) and not any(word in said(beside) for word in ("Traceback", "made again"))
    shutil.rmtree(beside)
    return disturbed(checkout, "two runs at once", "of one store", code=any(codes) or not same)


def clock_back(checkout: Path) -> Disturbed:
    """Before the times of the checkout's own files. The clock is libfaketime's, for dates alone."""
    plain = ("NO_FAKE_STAT=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1")
    code = ended(started(checkout, STUDY, "env", *plain, "faketime", "-f", "-400d"))
    return disturbed(checkout, "a clock set back", "before the code", "set the clock", code=code)


def from_the_future(checkout: Path) -> Disturbed:
    """All that was finished bears a time that is to come."""
    later = time.time() + 400 * 86400
    for file in (checkout / "build" / "smoke").rglob("*"):
        os.utime(file, (later, later))
    code = ended(started(checkout, STUDY))
    return disturbed(checkout, "a clock set back", "after marks and figures were made", code=code)


@contextmanager
def disk(folder: Path, room: int) -> Iterator[None]:
    """The folder on a disk of its own with so many bytes of room; its content comes back from there."""
    kept = folder.with_name(f"{folder.name}-kept")
    folder.rename(kept)
    folder.mkdir()
    mount("-t", "tmpfs", "none", str(folder))
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True, symlinks=True)
        used = os.statvfs(folder)
        size = (used.f_blocks - used.f_bfree) * used.f_frsize + room
        mount("-o", f"remount,size={size}", str(folder))
        yield
        shutil.rmtree(kept)
        mount("-o", "remount,size=2g", str(folder))
        shutil.copytree(folder, kept, symlinks=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
