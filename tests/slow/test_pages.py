"""The Python blocks of the pages run as they stand, one after the other, in a process of their own."""

import re

import pytest
from other_process import python

from lib.settings.paths import ROOT


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md"])
def test_the_blocks_run(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = python(str(tmp_path / "page.py"), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    assert len(blocks) > 3 and done.returncode == 0, done.stderr[-3000:]


def test_the_first_attack_runs_and_says_its_success_before_and_after():
    """On few people and in few steps: too few to be learnt."""
    short = "import runpy; runpy.run_path('docs/first_attack.py')['main']((20, 4), (2, 2), 4)"
    done = python("-c", short, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    stages = re.findall(r"^(.*): ASR 0\.\d{3} \[", done.stdout, re.MULTILINE)
    both = ("with the trigger", "without")
    assert stages == [f"{stage}, {way}" for stage in ("before", "attacked", "after DiSP") for way in both]
