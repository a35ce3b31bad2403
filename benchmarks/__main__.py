"""`make bench`: every benchmark in a process of its own, each a table and a figure, then one table of all ratios.

    python -m benchmarks --device cpu --llada ../LLaDA --fast-dllm ../Fast-dLLM --disp ../Diffusion_Self_Purification
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from benchmarks.harness import RESULTS, options

NO_QUESTIONS = {"__init__", "__main__", "decoders", "gpu", "harness", "loops", "plots"}
NO_QUESTIONS |= {"parity_disp", "parity_lavida", "parity_llada_v", "parity_rivals"}  # need checkouts, time nothing
NEED_A_GPU = {"full_size"}  # left out on a CPU unless named
SHOWN = ["file", "case", "ratio", "ratio_low", "ratio_high", "ours", "peer"]


def main() -> None:
    parser = options()
    parser.add_argument("files", nargs="*", help="which benchmarks; all by default")
    chosen = parser.parse_args()
    here = {file.stem for file in Path(__file__).parent.glob("*.py")} - NO_QUESTIONS
    unknown = set(chosen.files) - here
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(sorted(here))}")
    passed = [text for text in sys.argv[1:] if text not in here]
    failed = [
        file
        for file in chosen.files or sorted(here - (NEED_A_GPU if chosen.device == "cpu" else set()))
        if subprocess.run([sys.executable, "-m", f"benchmarks.{file}", *passed], check=False).returncode
    ]
    table = ratios(chosen.device)
    print(f"\nHow many times as long the peer takes, median and quartiles\n{table.round(2).to_string(index=False)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def ratios(device: str) -> pd.DataFrame:
    """All rows that have a ratio, of the last run on that kind of device."""
    parts = [
        pd.read_csv(file).assign(file=file.stem.removesuffix(f"-{device}"))
        for file in sorted(RESULTS.glob(f"*-{device}.csv"))
    ]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=SHOWN)
    return table.reindex(columns=SHOWN).dropna(subset="ratio")


if __name__ == "__main__":
    main()
