"""Two ways of doing one thing, run in turn in one process: the ratio of their times first, then the times.

A file of `benchmarks/` asks one question. It has `rows(chosen)`, which returns a list of `pair(...)`, and ends with
`main(__name__, rows, __file__)`; `python -m benchmarks.<file> --device cpu` writes
`benchmarks/results/<file>-<device>.csv`, and `figures/benchmarks/` has its figure.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd
import torch

from benchmarks.plots import FIGURES, RESULTS, draw

SHORT = 20  # ms: what a clock and another process's turn do not spoil


def options() -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7, help="how often each pair is timed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--llada", type=Path, help="folder of a checkout of ML-GSAI/LLaDA")
    parser.add_argument("--fast-dllm", type=Path, help="of NVlabs/Fast-dLLM")
    parser.add_argument("--disp", type=Path, help="of bigglesworthnotacat/Diffusion_Self_Purification")
    return parser


def pair(
    case: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    chosen: argparse.Namespace,
    names: tuple[str, str] = ("ours", "torch eager"),
    **facts: float | str,
) -> dict[str, float | str | int]:
    """One row: how many times as long `peer` takes as `ours`, median and quartiles over the rounds.

    Both run once before the clock starts, and then in turn, a way that takes less than `SHORT` so often in a row that
    they fill it. Times in ms a call; on a GPU also the peak of what each allocates beyond what was there, in MiB.
    `facts` are further columns, such as an agreement.
    """
    calls = []
    for way in (ours, peer):
        way()
        calls.append(max(1, round(SHORT / milliseconds(way, chosen.device))))
    spent = [
        tuple(milliseconds(way, chosen.device, n) for way, n in zip((ours, peer), calls, strict=True))
        for _ in range(chosen.rounds)
    ]
    ratios = pd.Series([theirs / own for own, theirs in spent])
    row = {
        "case": case,
        "ratio": ratios.median(),
        "ratio_low": ratios.quantile(0.25),
        "ratio_high": ratios.quantile(0.75),
        "ours": names[0],
        "peer": names[1],
        "ours_ms": median(own for own, _ in spent),
        "peer_ms": median(theirs for _, theirs in spent),
        "rounds": chosen.rounds,
    }
    if chosen.device == "cuda":
        row |= {"ours_mib": peak_mib(ours), "peer_mib": peak_mib(peer)}
    return row | facts


def write(file: str, rows: Iterable[dict], chosen: argparse.Namespace) -> pd.DataFrame:
    """The rows, if any, as a tidy CSV with device and versions, as a figure, and on the screen."""
    table = pd.DataFrame(list(rows))
    if table.empty:
        return table
    shown = table.drop(columns=["ratio_low", "ratio_high", "rounds"], errors="ignore")
    print(f"\n{file}, {device_name(chosen.device)}\n{shown.round(3).to_string(index=False)}", flush=True)
    table = table.assign(device=device_name(chosen.device), threads=chosen.threads, torch=version("torch"))
    RESULTS.mkdir(exist_ok=True)
    written = RESULTS / f"{file}-{chosen.device}.csv"
    table.round(4).to_csv(written, index=False)
    draw(written, FIGURES)
    return table


def main(module: str, rows: Callable[[argparse.Namespace], list[dict]], file: str) -> None:
    """Run as a program: parse the options, time, write. Nothing where `module` is imported."""
    if module == "__main__":
        chosen = options().parse_args()
        torch.set_num_threads(chosen.threads)
        write(Path(file).stem, rows(chosen), chosen)


def milliseconds(way: Callable[[], object], device: str, calls: int = 1) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = perf_counter()
    for _ in range(calls):
        way()
    if device == "cuda":
        torch.cuda.synchronize()
    return (perf_counter() - start) * 1e3 / calls


def peak_mib(way: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}"
