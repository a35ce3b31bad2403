"""No name is used that nothing defines. ruff's rule for that takes jaxtyping's shapes for names too, and is off."""

import json
import subprocess
import sys
import tokenize
from pathlib import Path

from lib.settings.paths import ROOT


def within_text(file: Path, row: int, column: int) -> bool:
    """Whether that place, counted from 1, is inside a string."""
    with file.open("rb") as lines:
        tokens = [t for t in tokenize.tokenize(lines.readline) if t.type == tokenize.STRING]
    return any(token.start <= (row, column - 1) < token.end for token in tokens)


def undefined(*folders: str) -> list[str]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--isolated", "--select", "F821"]
    command += ["--output-format", "json"]
    told = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found = [(Path(fault["filename"]), fault["location"], fault["message"]) for fault in json.loads(told)]
    places = [(file, place["row"], place["column"], said) for file, place, said in found]
    return [f"{file}:{row} {said}" for file, row, column, said in places if not within_text(file, row, column)]


def test_every_name_is_defined():
    assert not undefined("lib", "benchmarks", "tests", "docs", "executors")


def test_an_undefined_name_is_found_and_a_shape_is_none(tmp_path):
    (tmp_path / "made.py").write_text('def f(x: Float[Tensor, "batch"]):\n    return missing(x)\n')
    said = " ".join(undefined(str(tmp_path)))
    assert "`missing`" in said and "batch" not in said
