"""A statement added to a function, one in every package below the studies: which artifacts get another key.

Every change is written into a copy of the checkout whose library is then imported anew; what is to follow from it, and
what is not, stands in tests/runtime/test_keys.py.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from builds import copied
from trial import Trial

KIND = "a change of the code"
# The keys of the library as it is now, for every line that comes in. What is not of it is imported once.
KEYS = """
import json, os, sys, tempfile
from pathlib import Path
import diffusers, pandas, pytest, safetensors.torch, torch, transformers
for _ in sys.stdin:
    if not os.fork():
        import tiny
        from runtime.test_keys import CHANGES, artifacts
        with tempfile.TemporaryDirectory() as folder:
            keys = artifacts(tiny.run(Path(folder)))
        print(json.dumps([keys, {name: sorted(follows) for name, follows in CHANGES.items()}]), flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit("the library cannot be imported")
"""


def trials() -> Iterator[Trial]:
    with tempfile.TemporaryDirectory() as name:
        checkout = copied(Path(name) / "checkout")
        paths = os.pathsep.join(map(str, (checkout, checkout / "tests")))
        given = {"env": os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}, "cwd": checkout}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", KEYS], **given, **pipes) as library:
            before, follows = keys(library)
            for package in sorted({module.split(".")[0] for module in follows}):
                module = fewest(package, follows)
                file = checkout / "lib" / f"{module.replace('.', '/')}.py"
                text = file.read_text()
                file.write_text(with_statement(text))
                after, _ = keys(library)
                file.write_text(text)
                other = sorted(kind for kind in before if after[kind] != before[kind])
                told = f"another key for {other}, to be for {follows[module]}"
                yield Trial(KIND, f"lib.{module}", other == follows[module], told)
            library.stdin.close()


def keys(library: subprocess.Popen) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The key of an artifact of every kind, and which of them follow from which module."""
    library.stdin.write("\n")
    library.stdin.flush()
    return tuple(json.loads(library.stdout.readline()))


def fewest(package: str, follows: dict[str, list[str]]) -> str:
    """The module of the package from which the fewest artifacts follow, but some if there are such."""
    modules = [module for module in follows if module.split(".")[0] == package]
    return min(modules, key=lambda module: (not follows[module], len(follows[module])))


def with_statement(text: str) -> str:
    """The source with a statement put before the last one of its first function."""
    function = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    last, lines = function.body[-1], text.splitlines(keepends=True)
    lines.insert(last.lineno - 1, f"{' ' * last.col_offset}assert True\n")
    return "".join(lines)
