"""What a notebook leaves behind: figures and tables with their numbers, headline numbers, and a manifest.

    report = Report(run)
    report.figure("saliency", saliency_maps(...), table)
    report.number("disp.asr_with_trigger.before", **rate(successes))
    report.close()

`python -m lib.studies.report OUT` merges what the notebooks left below the folder OUT. The same numbers give the
same files, byte for byte; versions and times are in the manifests alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import SupportsFloat, SupportsInt

import pandas as pd
from matplotlib.figure import Figure

from lib.figures.bars import fleeting
from lib.runtime.keys import library_digest
from lib.runtime.store import write_atomic
from lib.settings.paths import COMMITTED, ROOT, default_out
from lib.studies.run import Run

HEADLINE, MANIFEST = "headline.csv", "manifest.json"
COLUMNS = ["name", "value", "low", "high", "n", "seeds", "interval", "notebook"]
PACKAGES = ("torch", "transformers", "diffusers", "numpy", "matplotlib")


class Report:
    """The folder `run.out/run.notebook` and what is put into it.

    Names of figures and tables are file names of letters, digits, "_" and "-"; names of numbers have dots
    too. A name that is already taken or is no such name is refused with a ValueError. Progress bars leave nothing.
    """

    def __init__(self, run: Run):
        if not re.fullmatch(r"[\w-]+", run.notebook):
            raise ValueError(f"notebook is {run.notebook!r}: it must be of letters, digits, '_' and '-'.")
        fleeting()
        _take_along(run.out)
        self.run = run
        self.folder = run.out / run.notebook
        self._code = code_version(ROOT)
        self._start = time.monotonic()
        self._files: dict[str, str] = {}
        self._numbers: dict[str, dict] = {}

    def figure(self, name: str, figure: Figure, table: pd.DataFrame) -> None:
        """Save name.pdf, name.png and name.csv, the numbers in the figure; a notebook shows it here, once."""
        from lib.figures.style import render, shown_size

        content = _csv(name, table)
        self._check(name)
        png = render(figure, "png")
        self._write(f"{name}.pdf", render(figure, "pdf"))
        self._write(f"{name}.png", png)
        self._write(f"{name}.csv", content)
        _show(png, shown_size(figure))

    def table(self, name: str, table: pd.DataFrame) -> None:
        """Save name.csv: six significant digits, without the index, which must not be a named one."""
        content = _csv(name, table)
        self._check(name)
        self._write(f"{name}.csv", content)

    def number(
        self,
        name: str,
        value: SupportsFloat,
        low: SupportsFloat | None = None,
        high: SupportsFloat | None = None,
        n: SupportsInt | None = None,
        seeds: SupportsInt = 1,
        interval: str = "",
    ) -> None:
        """Keep a headline number, its 95 % interval and the kind of it, and the counts of samples and seeds behind it.

        Limits that are NaN are none, as of one seed. Raises ValueError for a number that is not finite, one limit
        without the other, an interval without its kind, a value outside its interval, and n or seeds below 1.
        """
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            raise ValueError(f"name is {name!r}: it must be words of letters, digits, '_', '-' and dots.")
        if name in self._numbers:
            raise ValueError(f"name is {name!r}: the report already has that number.")
        low, high = (None if limit is None or math.isnan(limit) else limit for limit in (low, high))
        if (low is None) != (high is None):
            raise ValueError(f"{name} has low={low} and high={high}: it must have both or neither.")
        if low is not None and not interval:
            raise ValueError(f"{name} has low={low} and high={high}: interval must say of what kind they are.")
        limits = {"value": value, "low": low, "high": high}
        row = {field: None if number is None else float(number) for field, number in limits.items()}
        for field, number in row.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{field} of {name} is {number}: it must be finite.")
        if low is not None and not row["low"] <= row["value"] <= row["high"]:
            raise ValueError(f"{name} is {value} with low={low} and high={high}: it must lie between them.")
        for field, count in {"n": n, "seeds": seeds}.items():
            if count is not None and (int(count) != count or count < 1):
                raise ValueError(f"{field} of {name} is {count}: it must be an integer from 1.")
        counts = {"n": None if n is None else int(n), "seeds": int(seeds), "interval": interval}
        self._numbers[name] = row | counts

    def numbers(self, prefix: str, table: pd.DataFrame, *names: str) -> None:
        """Keep those of `names` that the table's column `name` has, as prefix.name.

        Columns value, low, high, n, interval and, where there are several, seeds.
        """
        for row in table[table["name"].isin(names)].to_dict("records"):
            values = [row[column] for column in ("value", "low", "high", "n")]
            self.number(f"{prefix}.{row['name']}", *values, row.get("seeds", 1), row["interval"])

    def close(self) -> None:
        """Write headline.csv and, last of all, manifest.json."""
        rows = [{"name": name, "notebook": self.run.notebook} | row for name, row in self._numbers.items()]
        table = pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64"})
        self._write(HEADLINE, _csv("headline", table))
        sections = self.run.profile.model_dump(mode="json")
        manifest = {
            "notebook": self.run.notebook,
            "profile": sections.pop("name"),
            "parameters": {"seed": self.run.seed, "device": self.run.device.type, **sections},
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "code": self._code,
            "files": dict(sorted(self._files.items())),
            "seconds": round(time.monotonic() - self._start, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomic(self.folder / MANIFEST, _json(manifest))

    def _check(self, name: str) -> None:
        if not re.fullmatch(r"[\w-]+", name) or f"{name}.csv" == HEADLINE:
            raise ValueError(f"name is {name!r}: it must be of letters, digits, '_', '-', not 'headline'.")
        if f"{name}.csv" in self._files:
            raise ValueError(f"name is {name!r}: the report already has a figure or table of that name.")

    def _write(self, name: str, content: bytes) -> None:
        write_atomic(self.folder / name, content)
        self._files[name] = hashlib.sha256(content).hexdigest()


def _take_along(out: Path) -> None:
    """The rows that only FULL=1 computes (`lib.studies.further`), as committed, into the folder of a notebook that is
    run by hand: it reads them where it writes."""
    if out == default_out("laptop").resolve():
        for table in COMMITTED.glob("*_seeds.csv"):
            write_atomic(out / table.name, table.read_bytes())


def merge(out: Path) -> None:
    """Merge out/*/headline.csv into out/headline.csv and out/*/manifest.json into out/MANIFEST.json.

    Rows are sorted by notebook and name. Raises ValueError when there is none, when a notebook's report is
    not closed, when two notebooks give the same name to a number, when they are of several profiles, seeds or devices,
    and when a file is not what its manifest says. Warns where they are of several versions of the code.
    """
    folders = sorted(file.parent for file in out.glob(f"*/{HEADLINE}"))
    if not folders:
        raise ValueError(f"{out} holds no */{HEADLINE}: run the notebooks first.")
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} has {HEADLINE} but no {MANIFEST}: run its notebook again.")
    manifests = {folder.name: json.loads((folder / MANIFEST).read_text()) for folder in folders}
    rows = pd.concat([pd.read_csv(folder / HEADLINE, dtype=str, keep_default_na=False) for folder in folders])
    if list(rows) != COLUMNS:
        raise ValueError(f"headlines in {out} have the columns {list(rows)}: they must be {COLUMNS}.")
    for name, same in rows.groupby("name"):
        if len(same) > 1:
            raise ValueError(
                f"the number {name!r} is in {' and '.join(same['notebook'])}: one must rename it."
            )
    _check_alike(manifests)
    for folder in folders:
        _check_files(folder, manifests[folder.name]["files"])
    write_atomic(out / HEADLINE, _csv("headline", rows.sort_values(["notebook", "name"])))
    write_atomic(out / "MANIFEST.json", _json(manifests))


def _check_alike(manifests: Mapping[str, Mapping]) -> None:
    """Raises ValueError for reports of several profiles, seeds or devices; warns of several versions of the code."""
    about = {name: {"profile": m["profile"], "code": m["code"], **m["parameters"]} for name, m in manifests.items()}
    for field in ("profile", "seed", "device", "code"):
        values = {name: one[field] for name, one in about.items()}
        if len(set(values.values())) < 2:
            continue
        listed = ", ".join(f"{value} in {name}" for name, value in values.items())
        if field != "code":
            raise ValueError(f"reports of one folder must have the same {field}, not {listed}: choose another OUT")
        warnings.warn(f"these reports were made by several versions of the code: {listed}", stacklevel=3)


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises ValueError for a file that is not what the report's manifest says."""
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{file} is not what its {MANIFEST} says: run its notebook again")


def code_version(root: Path) -> str:
    """The commit of the checkout `root`, "-dirty" where tracked files differ; elsewhere lib's SHA-256.

    Files below figures/ do not count: the notebooks that run before this one have just written some.
    """
    git = ["git", "--no-optional-locks", "-C", str(root)]
    ask = {"capture_output": True, "text": True, "check": True}
    if (root / ".git").exists():
        try:
            commit = subprocess.run([*git, "describe", "--always"], **ask).stdout.strip()
            changed = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)figures"]
            return commit + ("-dirty" if subprocess.run(changed, **ask).stdout else "")
        except (OSError, subprocess.CalledProcessError):
            pass
    return f"lib sha256 {library_digest()}"


def _csv(name: str, table: pd.DataFrame) -> bytes:
    if any(level is not None for level in table.index.names):
        raise ValueError(f"table {name!r} has the index {table.index.names}: use reset_index().")
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _show(png: bytes, size: dict[str, int]) -> None:
    """Display a picture where there is a notebook."""
    from IPython import get_ipython
    from IPython.display import Image, display

    if get_ipython() is not None:
        display(Image(data=png, format="png", **size))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m lib.studies.report OUT")
    try:
        merge(Path(sys.argv[1]))
    except (ValueError, OSError, KeyError) as refusal:
        sys.exit(f"lib.studies.report: {refusal}")
