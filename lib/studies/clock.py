"""The clock beside the times of files, by which the pipeline tells what is older than what it is made from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

AHEAD = 60.0  # seconds, by which the clocks of one cluster may differ


def check_clock(sources: Iterable[str]) -> None:
    """Raises ValueError where one of these files, as far as they are there, is of a time to come: all that is made from
    it would look older."""
    now = time.time()
    for file in filter(os.path.exists, sources):
        if (made := Path(file).stat().st_mtime) > now + AHEAD:
            says, of = (datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M") for at in (now, made))
            raise ValueError(f"the clock says {says} and {file} is of {of}: set the clock, or touch the file")


def settle(paths: Iterable[str]) -> None:
    """What of these files, and in these folders, bears a time to come gets the present one, as far as may be."""
    now = time.time()
    for file in (file for path in map(Path, paths) for file in (path, *path.rglob("*"))):
        with suppress(OSError):
            if file.stat().st_mtime > now + AHEAD:
                os.utime(file, (now, now))
