"""The Python blocks of the pages run as they stand, one after the other, in a process of their own."""

import os
import re
import subprocess
import sys

import pytest

from lib.settings.paths import ROOT


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md"])
def test_the_blocks_run(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "page.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert len(blocks) > 3 and done.returncode == 0, done.stderr[-3000:]
