"""`make figures PROFILE=smoke`, killed at random moments until it ends: the same tables, nothing finished made again.

Builds from nothing, up to PER_BUILD kills each, KILLS (50) in all. Every kill is followed by the next run, which goes
on and is killed in turn; the last run of a build is left to end. A build is STUDY=collapse, then disp, then what is
left of all, and the next one STUDY=all. Every other kill takes all processes of the group, else one, drawn from all
below make: Snakemake, a shell, a job, its kernel; the next run begins at once, beside what outlived its parent.
Moments are drawn evenly over a build's progress: so many jobs finished, then a part of the time that one takes, or
until one more is.

A kill holds if no artifact and no job that was finished before it was made again by any later run, every later run
that nobody killed ended well, and the build's tables are those of a build that nobody killed, byte for byte.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builds import (
    children,
    command,
    copied,
    ended,
    finishes,
    left_alone,
    said,
    stamps,
    started,
    tables,
    whole,
)
from trial import Trial

KIND, PER_BUILD = "a kill of make figures", 17
ORDERS = (("collapse", "disp", "all"), ("all",))
PARTS = ("lib.runtime.store", "snakemake", "lib.studies", "papermill", "ipykernel", "bash", "sh")


@dataclass(frozen=True)
class Kill:
    """What was killed, and what was finished by then."""

    what: str
    artifacts: dict[Path, int]
    jobs: Counter[str]


def trials() -> Iterator[Trial]:
    draw, left, number = random.Random(0), int(os.environ.get("KILLS", "50")), 0
    checkout = copied(whole().checkout.parent / "killed")
    while left > 0:
        moments = [draw.uniform(0, whole().jobs + 1) for _ in range(min(left, PER_BUILD))]
        tried = build(checkout, ORDERS[number % 2], sorted(moments, reverse=True), draw)
        left, number = left - len(tried), number + 1
        yield from tried


def build(checkout: Path, studies: tuple[str, ...], moments: list[float], draw: random.Random) -> list[Trial]:
    """One build from nothing, killed at these moments, the last of which comes first."""
    for name in ("build", ".snakemake"):
        shutil.rmtree(checkout / name, ignore_errors=True)
    (checkout / "log").unlink(missing_ok=True)
    kills, failed = [], []
    for study in studies:
        while True:
            run = started(checkout, study)
            if moments and reached(checkout, run, moments[-1]):
                one = draw if len(kills) % 2 else None
                kills.append(kill(checkout, run, study, moments.pop(), one))
            elif not (code := ended(run)):
                break
            else:
                failed.append(f"a run of {study} after {len(kills)} kills ended with {code}: {said(checkout)[-300:]}")
                if len(failed) > 3:
                    raise RuntimeError(failed[-1])
    left_alone(checkout)
    found, kept, jobs = tables(checkout), stamps(checkout), finishes(checkout)
    expected = whole().tables
    other = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
    held = [not other and not failed] * len(kills)
    told = []
    for number, one in enumerate(kills):
        again = [str(path) for path, stamp in one.artifacts.items() if kept.get(path) != stamp]
        again += [job for job in one.jobs if jobs[job] > one.jobs[job]]
        held[number] &= not again
        told.append(f"{len(one.artifacts)} artifacts, {len(one.jobs)} jobs; again {again[:3]}; {other[:3]}; {failed}")
    return [Trial(KIND, one.what, good, text) for one, good, text in zip(kills, held, told, strict=True)]


def reached(checkout: Path, run: subprocess.Popen, moment: float) -> bool:
    """Wait for so many finished jobs, and the part of the next one's time. False where the run ended before."""
    before, since = finishes(checkout).total(), None
    while run.poll() is None:
        done = finishes(checkout).total()
        if done >= int(moment):
            since = since or time.monotonic()
            if done > max(before, int(moment)) or time.monotonic() - since >= moment % 1 * whole().job_seconds:
                return True
        time.sleep(0.2)
    return False


def kill(checkout: Path, run: subprocess.Popen, study: str, moment: float, one: random.Random | None) -> Kill:
    victims = children(run.pid)
    with suppress(ProcessLookupError):
        if one is None or not victims:
            victim = "all processes"
            os.killpg(run.pid, signal.SIGKILL)
        else:
            pid = one.choice(victims)
            victim = next((part for part in PARTS if part in command(pid)), command(pid))
            os.kill(pid, signal.SIGKILL)
    ended(run)
    print(f"STUDY={study}: {victim} killed at {moment:.1f} jobs", flush=True)
    return Kill(f"STUDY={study}, {victim} after {moment:.1f} jobs", stamps(checkout), finishes(checkout))
