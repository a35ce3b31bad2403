"""Copies of the checkout in which `make figures PROFILE=smoke` is run: its processes, and what it has finished."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from lib.runtime.store import CHECKSUMS
from lib.settings.paths import ROOT

LONGEST = 1800  # seconds after which a run counts as one that hangs
EVENT = re.compile(r"^Job (\d+): (?:training|notebook) ([\w.-]+) |^Finished jobid: (\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Whole:
    """A build from nothing that nobody disturbed: where, its tables' bytes, its jobs, how long one of them takes."""

    checkout: Path
    tables: dict[str, bytes]
    jobs: int
    job_seconds: float


@cache
def whole() -> Whole:
    """Made once by a process of the tests; kept below the folder CHECKOUT where there is such a variable."""
    folder = os.environ.get("CHECKOUT") or tempfile.mkdtemp(prefix="faults-")
    if "CHECKOUT" not in os.environ:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkout = copied(Path(folder) / "whole")
    if code := ended(started(checkout)):
        raise RuntimeError(f"make figures ended with {code}:\n{said(checkout)[-2000:]}")
    times = [float(pd.read_csv(file, sep="\t")["s"][0]) for file in (checkout / "build/smoke/times").glob("*.tsv")]
    return Whole(checkout, tables(checkout), len(times), sum(times) / len(times))


def copied(folder: Path) -> Path:
    """What git knows of, with this checkout's .venv."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    os.utime(folder / "requirements.txt", (0, 0))  # older than the environment, which stays
    return folder


def another(name: str) -> Path:
    """A second copy with all that the undisturbed build has finished."""
    folder = whole().checkout.parent / name
    shutil.copytree(whole().checkout, folder, symlinks=True)
    (folder / "log").unlink()
    return folder


def started(checkout: Path, study: str = "all", *before: str) -> subprocess.Popen:
    """`make figures`, by the command `before` it if there is one, in a session of its own."""
    command = [*before, "make", "figures", "PROFILE=smoke", f"STUDY={study}", "JOBS=2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (checkout / "log").open("a") as log:
        run = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True)
    atexit.register(stopped, run)
    return run


def stopped(run: subprocess.Popen) -> None:
    """End what still runs of it, where the tests end before."""
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)


def ended(run: subprocess.Popen) -> int:
    """Its exit code. Raises TimeoutError where it hangs."""
    try:
        return run.wait(LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise TimeoutError(f"make figures hung for {LONGEST} s") from None


def said(checkout: Path) -> str:
    return (checkout / "log").read_text()


def finishes(checkout: Path) -> Counter[str]:
    """How often each training run and notebook was finished, as the log of all runs in that copy tells."""
    names, counted = {}, Counter()
    for number, name, done in EVENT.findall(said(checkout)):
        if done:
            counted.update([names.pop(done)] if done in names else [])
        else:
            names[number] = name
    return counted


def children(pid: int) -> list[int]:
    """All processes below it."""
    listed = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                listed += [int(child), *children(int(child))]
    return listed


def within(checkout: Path) -> Iterator[int]:
    """Processes whose folder is that copy."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").resolve() == checkout:
                yield int(process.name)


def left_alone(checkout: Path) -> None:
    """Wait for processes that outlived their parents. Raises TimeoutError where one stays."""
    until = time.monotonic() + LONGEST
    while any(within(checkout)):
        if time.monotonic() > until:
            raise TimeoutError(f"processes stay: {list(within(checkout))}")
        time.sleep(0.5)


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


def tables(checkout: Path) -> dict[str, bytes]:
    folder = checkout / "build" / "smoke" / "figures"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.csv"))}


def stamps(checkout: Path) -> dict[Path, int]:
    """Every finished artifact, and when it was."""
    store = checkout / "build" / "store"
    return {file.parent: file.stat().st_mtime_ns for file in store.glob(f"*/[0-9a-f]*/{CHECKSUMS}")}
