"""Python in a process of its own, which finds the library and the tests."""

import os
import subprocess
import sys
from pathlib import Path

from lib.settings.paths import ROOT

HERE = Path(__file__).parent


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` in the repository; what it says is kept."""
    given = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE, HERE / "slow")))} | environment
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=given, capture_output=True, text=True)
