"""Which profile, paths, seed and device a run has: everything that differs from one run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.runtime.store import Store
from lib.settings.load import runnable_profile
from lib.settings.paths import BUILD, default_out
from lib.settings.profile import Profile
from lib.settings.sections import changed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Run:
    """What a notebook works with: one profile, seed, device, output folder and store."""

    profile: Profile
    seed: int
    device: torch.device
    out: Path
    store: Store
    notebook: str = ""


def run_parameters(
    notebook: str,
    profile: str,
    seed: int,
    device: str,
    out: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Check a notebook's papermill parameters before any work and set threads and seeds.

    `out` is where figures go, by default `build/<profile>/figures`.
    Raises ValueError naming the parameter, its value and what is allowed.
    """
    chosen = runnable_profile(profile, overrides)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2**31 - 1")
    if out is not None and (not isinstance(out, str) or not out or Path(out).is_file()):
        raise ValueError(f"out={out!r} must be the name of a folder, which is made if it does not exist")
    import torch  # the pipeline reads profiles without it

    from lib.runtime.devices import resolve_device

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    folder = Path(out) if out else default_out(chosen.name)
    return Run(chosen, seed, resolve_device(device), folder.resolve(), Store(BUILD / "store"), notebook)


def with_settings(run: Run, section: str, settings: Mapping[str, Any], seed: int = 0) -> Run:
    """The run with `settings` merged onto that section of its profile, and `seed` added to its seed."""
    update = {section: changed(getattr(run.profile, section), settings)}
    return replace(run, seed=run.seed + seed, profile=run.profile.model_copy(update=update))


def with_profile(run: Run, settings: Mapping[str, Any], seed: int = 0) -> Run:
    """The run with `settings` merged onto its whole profile, and `seed` added to its seed."""
    return replace(run, seed=run.seed + seed, profile=changed(run.profile, settings))
