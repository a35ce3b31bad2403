"""`make figures PROFILE=smoke`, killed at random moments: the next run ends with the same tables, and makes nothing
that was finished again.

In a copy of the checkout, for hours: KILLS kills (50), the whole group of processes or one of them, at a moment drawn
over the time that a whole run takes; every tenth from nothing, else with a third of the artifacts and all figures gone.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trial import Trial

from lib.runtime.store import CHECKSUMS
from lib.settings.paths import ROOT

KIND = "a kill of make figures"
STUDIES = ("all", "collapse", "disp")


def trials() -> Iterator[Trial]:
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        checkout = copied(Path(name) / "checkout")
        begun = time.monotonic()
        ended(started(checkout, "all"))
        whole, expected = time.monotonic() - begun, tables(checkout)
        for number in range(int(os.environ.get("KILLS", "50"))):
            yield killed(checkout, draw, number, whole, expected)


def killed(checkout: Path, draw: random.Random, number: int, whole: float, expected: dict[str, bytes]) -> Trial:
    study, group, moment = draw.choice(STUDIES), number % 2 == 0, draw.uniform(0.02, 0.9) * whole
    begin(checkout, draw, number % 10 == 0)
    run = started(checkout, study)
    with suppress(subprocess.TimeoutExpired):
        run.wait(moment)
    with suppress(ProcessLookupError):
        if group:
            os.killpg(run.pid, signal.SIGKILL)
        else:
            for pid in children(run.pid)[-1:]:
                os.kill(pid, signal.SIGKILL)
    run.wait()
    finished = stamps(checkout)
    ended(started(checkout, "all"))
    found, kept = tables(checkout), stamps(checkout)
    other = sorted(name for name in expected if found.get(name) != expected[name])
    again = sorted(str(path) for path, stamp in finished.items() if kept.get(path) != stamp)
    what = f"STUDY={study}, {'all processes' if group else 'one process'} after {moment:.0f} s"
    said = f"{len(finished)} artifacts finished, made again: {again[:3]}, other tables: {other[:3]}"
    return Trial(KIND, what, bool(expected) and not other and not again and set(found) == set(expected), said)


def copied(folder: Path) -> Path:
    """What git knows of, with this checkout's .venv."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    os.utime(folder / "requirements.txt", (0, 0))  # older than the environment, which stays
    return folder


def begin(checkout: Path, draw: random.Random, nothing: bool) -> None:
    """The state before a run that is to be killed."""
    shutil.rmtree(checkout / "build" / "smoke", ignore_errors=True)
    if nothing:
        shutil.rmtree(checkout / "build", ignore_errors=True)
    for path in stamps(checkout):
        if draw.random() < 1 / 3:
            shutil.rmtree(path)


def started(checkout: Path, study: str) -> subprocess.Popen:
    command = ["make", "figures", "PROFILE=smoke", f"STUDY={study}", "JOBS=2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (checkout / "log").open("a") as log:
        return subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True)


def ended(run: subprocess.Popen) -> None:
    """Raises RuntimeError where a run that nobody kills does not end well."""
    if code := run.wait():
        raise RuntimeError(f"make figures ended with {code}: see the log in its checkout")


def children(pid: int) -> list[int]:
    """All processes below it, the deepest last."""
    listed = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                listed += [int(child), *children(int(child))]
    return listed


def tables(checkout: Path) -> dict[str, bytes]:
    folder = checkout / "build" / "smoke" / "figures"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.csv"))}


def stamps(checkout: Path) -> dict[Path, int]:
    """Every finished artifact, and when it was."""
    store = checkout / "build" / "store"
    return {file.parent: file.stat().st_mtime_ns for file in store.glob(f"*/[0-9a-f]*/{CHECKSUMS}")}
