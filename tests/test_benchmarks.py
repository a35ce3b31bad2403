"""The benchmarks' harness: what is run in which order, what a row and a table hold. Nothing here is timed."""

import argparse
import importlib

import numpy as np
import pandas as pd
import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks import activations, full_size, gpu, harness
from benchmarks.plots import cost_curves, ratio_dots
from lib.figures.style import render
from lib.settings.paths import ROOT


@pytest.fixture
def results(tmp_path, monkeypatch):
    for module in (harness, bench):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def chosen(rounds: int = 5) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", rounds=rounds, threads=1)


def test_a_pair_runs_in_turn_after_a_run_of_each_and_gives_the_median_ratio(monkeypatch):
    calls = []
    spent = {"ours": [9, 9, 1, 1, 2, 4, 1], "peer": [9, 9, 2, 8, 6, 4, 3]}  # the first two do not count
    clock = [0.0]

    def way(name):
        def run():
            calls.append(name)
            clock[0] += spent[name][calls.count(name) - 1]

        return run

    monkeypatch.setattr(harness, "perf_counter", lambda: clock[0])
    row = harness.pair("case", way("ours"), way("peer"), chosen(), ("new", "old"), agreement=1.0)
    assert calls == ["ours"] * 2 + ["peer"] * 2 + ["ours", "peer"] * 5
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (3, 2, 3)  # of 2, 8, 3, 1, 3
    assert (row["ours_ms"], row["peer_ms"], row["rounds"], row["agreement"]) == (1000, 4000, 5, 1)
    assert (row["case"], row["ours"], row["peer"]) == ("case", "new", "old")


def test_short_calls_are_repeated_until_they_fill_the_clock(monkeypatch):
    clock, calls = [0.0], {"ours": 0, "peer": 0}
    seconds = {"ours": harness.SHORT / 4e3, "peer": harness.SHORT * 1e-3}

    def way(name):
        def run():
            calls[name] += 1
            clock[0] += seconds[name]

        return run

    monkeypatch.setattr(harness, "perf_counter", lambda: clock[0])
    row = harness.pair("case", way("ours"), way("peer"), chosen(rounds=3))
    assert calls == {"ours": 2 + 4 * 3, "peer": 2 + 3}
    assert (row["ratio"], row["ours_ms"]) == (pytest.approx(4), pytest.approx(harness.SHORT / 4))


def test_tables_are_written_with_device_and_versions_and_gathered_again(results):
    rows = [{"case": "a", "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5, "ours": "x", "peer": "y"}]
    harness.write("one", rows, chosen())
    harness.write("two", [{"case": "b", "share": 0.5}], chosen())
    table = pd.read_csv(results / "one-cpu.csv")
    assert table["device"][0].startswith("CPU") and {"torch", "threads"} <= set(table)
    gathered = bench.ratios("cpu")
    assert gathered[["file", "case", "ratio"]].to_numpy().tolist() == [["one", "a", 2.0]]
    assert bench.ratios("cuda").empty
    assert render(ratio_dots(gathered), "png").startswith(b"\x89PNG")


def test_an_unknown_benchmark_is_refused_before_any_runs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "speed"])
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: pytest.fail("something ran"))
    with pytest.raises(SystemExit):
        bench.main()
    assert "speed: there are activations, bootstrap" in capsys.readouterr().err


def test_a_benchmark_that_fails_is_named_at_the_end(results, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "loss", "training", "--rounds", "3"])
    asked = []

    def run(command, check):
        asked.append(command[1:])
        return argparse.Namespace(returncode=int("benchmarks.loss" in command))

    monkeypatch.setattr(bench.subprocess, "run", run)
    with pytest.raises(SystemExit, match="failed: loss"):
        bench.main()
    assert asked == [["-m", f"benchmarks.{name}", "--rounds", "3"] for name in ("loss", "training")]


def test_the_peak_on_a_gpu_is_what_a_call_allocates_beyond_what_was_there(monkeypatch):
    """By the calls of torch.cuda, which must be there under these names."""
    held = {"now": 3 << 20, "most": 9 << 20}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(most=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["most"])
    assert harness.peak_mib(lambda: held.update(most=5 << 20)) == 2


def test_the_gpu_script_says_where_there_is_none(monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main()
    assert {"confidence", "fisher", "loss"} <= set(gpu.KERNELS)


def test_cost_curves_join_the_probes_of_an_estimator_and_mark_what_is_to_reach():
    costs = [("a", "sign", 1, 0.8, 2.0), ("a", "sign", 4, 0.9, 6.0), ("a", "occlusion", 0, 0.4, 60.0)]
    costs += [("b", *row[1:]) for row in costs]
    table = pd.DataFrame(costs, columns=["pictures", "estimator", "probes", "overlap", "forwards"])
    figure = cost_curves(table.assign(overlap_low=0.3, overlap_high=1.0), 4, 0.95)
    left, right = figure.axes
    assert [axis.get_title() for axis in (left, right)] == ["a", "b"]
    assert [text.get_text() for text in left.texts] == ["1", "4"]
    curves = [line.get_xydata().tolist() for line in left.lines]
    assert [[2, 0.8], [6, 0.9]] in curves and [[60, 0.4]] in curves
    assert [[4, 0], [4, 1]] in curves and [[0, 0.95], [1, 0.95]] in curves
    assert render(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}" if name != "__init__" else "benchmarks")


def test_the_published_models_are_measured_at_toy_size():
    """What `--size full` does on a GPU, on tiny models."""
    asked = argparse.Namespace(device="cpu", rounds=1, threads=1, size="toy", llada=None)
    table = pd.DataFrame(full_size.rows(asked)).set_index("task")
    tasks = [*(f"LLaDA-V, decoding {n} tokens" for n in (4, 8)), "LLaDA-V, saliency, 4 probes"]
    tasks += ["LLaDA-V, LoRA fine-tuning step", "LLaDA-V, DiSP's whole step"]
    tasks += ["InstructPix2Pix at 64², sampling 2 steps", "InstructPix2Pix at 64², training step"]
    assert table.index.tolist() == tasks
    assert (table[["seconds", "samples_s", "roofline"]] > 0).all().all() and (table["roofline"] < 1).all()
    assert (table["samples_s"] * table["seconds"]).round(6).equals(table["batch"].astype(float))


def test_memory_of_32_layers_is_carried_on_from_two_depths():
    table = pd.DataFrame(activations.rows(chosen(), "toy")).pivot(index="activations", columns="layers", values="gb")
    assert table.columns.tolist() == [1, 2, 32] and (table.loc["kept"] > table.loc["computed again"])[32]
    assert np.allclose(table[32], table[2] + 30 * (table[2] - table[1]))


def test_the_full_sizes_are_the_published_ones():
    with torch.device("meta"):
        model = full_size.LladaVModel(full_size.LladaVConfig())
    pipe = full_size.instruct_pix2pix("meta")
    count = {"LLaDA-V": sum(p.numel() for p in model.parameters())}
    count["U-Net"] = sum(p.numel() for p in pipe.unet.parameters())
    assert 8.3e9 < count["LLaDA-V"] < 8.6e9  # 16.9 GB in bfloat16
    assert 859e6 < count["U-Net"] < 860e6  # Stable Diffusion 1.5's, with eight input channels
