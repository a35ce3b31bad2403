"""Progress bars in a notebook: one for what takes long, which leaves nothing, and none of a redrawn picture."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

PLAIN = tqdm.__init__


def fleeting() -> None:
    """From now on bars leave nothing behind, and those of transformers and diffusers, where imported, are not shown."""
    _told(leave=False)
    for name in ("transformers", "diffusers"):
        if name in sys.modules:
            sys.modules[name].utils.logging.disable_progress_bar()


@contextmanager
def hidden() -> Iterator[None]:
    """No bars."""
    before = tqdm.__init__
    _told(disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = before


def _told(**options: bool) -> None:
    """Every bar is given these, whatever the code that makes it says."""
    tqdm.__init__ = lambda self, *given, **named: PLAIN(self, *given, **named | options)
