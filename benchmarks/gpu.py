"""The kernels on a GPU: all their tests, then their benchmarks. Prints a table and keeps it in `results/gpu.csv`.

    python -m benchmarks.gpu
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from benchmarks.harness import RESULTS
from lib.settings.paths import ROOT

KERNELS = sorted(file.stem.removeprefix("test_") for file in (ROOT / "tests" / "kernels").glob("test_*.py"))


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: torch sees no CUDA device here; `make test` runs the kernels in Triton's interpreter")
    rows = [tested(kernel) | {"benchmark": benchmark(kernel)} for kernel in KERNELS]
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": today}
    table = pd.DataFrame(rows).assign(**about)
    table.to_csv(RESULTS / "gpu.csv", index=False)
    print(table.to_string(index=False))
    if table["failed"].any() or not table["benchmark"].eq("done").all():
        sys.exit("benchmarks.gpu: not everything passed")


def tested(kernel: str) -> dict[str, str | int | float]:
    """How many of the kernel's tests passed and failed, compiled and not interpreted, and their seconds."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"tests/kernels/test_{kernel}.py", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "0"}, check=False)
        (suite,) = xml.parse(report).getroot().iter("testsuite")
    count = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return {"kernel": kernel, "passed": passed, "failed": failed, "seconds": float(suite.get("time"))}


def benchmark(kernel: str) -> str:
    """Runs the kernel's benchmark, which leaves its own table; whether it ended well."""
    command = [sys.executable, "-m", f"benchmarks.{kernel}", "--device", "cuda"]
    return "failed" if subprocess.run(command, cwd=ROOT, check=False).returncode else "done"


if __name__ == "__main__":
    main()
