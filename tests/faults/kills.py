"""`make figures PROFILE=smoke`, killed at random moments until it ends: the same tables, nothing finished made again.

Builds from nothing, up to PER_BUILD kills each, KILLS (50) in all. Every kill is followed by the next run, which goes
on and is killed in turn; the last run of a build is left to end. A build is STUDY=collapse, then disp, then what is
left of all, and the next one STUDY=all. Every other kill takes all processes, else one, drawn from them: make, a
shell, Snakemake, a job, its kernel; the next run begins as soon as make has ended, beside what outlived its parent.
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
    within,
)
from trial import Trial

KIND, PER_BUILD = "a kill of make figures", 17
ORDERS = (("collapse", "disp", "all"), ("all",))
PARTS = ("lib.runtime.store", "snakemake", "lib.studies", "papermill", "ipykernel")


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
        run, disturbed = started(checkout, study), False
        while True:
            if moments and reached(checkout, run, moments[-1]):
                one = draw if len(kills) % 2 else None
                kills.append(kill(checkout, study, moments.pop(), one))
                disturbed = bool(one or ended(run))
            elif not (code := ended(run)):
                break
            else:
                if not disturbed:
                    failed.append(f"STUDY={study} after {len(kills)} kills ended with {code}: {said(checkout)[-300:]}")
                if len(failed) > 3:
                    raise RuntimeError(failed[-1])
                run, disturbed = started(checkout, study), False
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


def kill(checkout: Path, study: str, moment: float, one: random.Random | None) -> Kill:
    """All processes in that copy, or one, and then what was finished."""
    victims, who = sorted(within(checkout)), "all processes"
    if one and victims:
        victims = [one.choice(victims)]
        who = name(victims[0])
    what = f"STUDY={study}: {who} killed after {moment:.1f} jobs"
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    print(what, flush=True)
    return Kill(what, stamps(checkout), finishes(checkout))


def name(pid: int) -> str:
    words = command(pid).split()
    known = [part for part in PARTS if "python" in words[0] and part in " ".join(words[:4])] if words else []
    return (known or [Path(words[0]).name if words else "a process that has just ended"])[0]
