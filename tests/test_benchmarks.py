"""The benchmarks' harness: what is run in which order, what a row and a table hold. Nothing here is timed."""

import argparse
import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

import benchmarks.__main__ as bench
from benchmarks import (
    activations,
    decoders,
    decoding,
    full_size,
    gpu,
    harness,
    loops,
    parity_disp,
    plots,
    saliency,
    saliency_cost,
    training,
)
from benchmarks.plots import OVERLAPS, cost_curves, ratio_dots
from lib.figures.style import render
from lib.kernels.fisher import fisher_probe
from lib.models.editor import edit_loss, load_editor
from lib.models.mdlm import masked_diffusion_loss
from lib.settings.paths import CHECKPOINTS, ROOT
from tests import scored_models


@pytest.fixture
def results(tmp_path, monkeypatch):
    for module in (harness, bench, plots):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    for module in (harness, plots):
        monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
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
    harness.write("figures", [{"case": "b", "share": 0.5}], chosen())
    assert harness.write("redundancy", [], chosen()).empty and not (results / "redundancy-cpu.csv").exists()
    table = pd.read_csv(results / "one-cpu.csv")
    assert table["device"][0].startswith("CPU") and {"torch", "threads"} <= set(table)
    gathered = bench.ratios("cpu")
    assert gathered[["file", "case", "ratio"]].to_numpy().tolist() == [["one", "a", 2.0]]
    assert bench.ratios("cuda").empty
    assert render(ratio_dots(gathered), "png").startswith(b"\x89PNG")
    drawn = results.parent / "figures"
    names = {f"{table}-cpu.{kind}" for table in ("one", "figures") for kind in ("pdf", "png")}
    assert {file.name for file in drawn.iterdir()} == names
    (results / "one-cpu.csv").unlink()
    plots.main([])
    assert {file.stem for file in drawn.iterdir()} == {"figures-cpu"}


@pytest.mark.parametrize("name", sorted(path.stem for path in plots.FIGURES.glob("*.png")))
def test_every_figure_that_is_kept_is_of_the_table_that_is_kept(name, tmp_path):
    plots.draw(plots.RESULTS / f"{name}.csv", tmp_path)
    kept, anew = (imread(folder / f"{name}.png") for folder in (plots.FIGURES, tmp_path))
    assert kept.shape == anew.shape and np.abs(kept - anew).mean() < 0.01
    assert (plots.FIGURES / f"{name}.pdf").is_file()


def test_a_caption_says_what_a_table_was_made_on():
    made = {"device": "CPU, x86_64", "threads": 1, "torch": "2.13.0"}
    assert plots.made_on(pd.DataFrame([made | {"rounds": 7}])) == "CPU, x86_64, 1 thread, 7 rounds, torch 2.13.0"
    assert plots.made_on(pd.DataFrame([made | {"threads": 2}])) == "CPU, x86_64, 2 threads, torch 2.13.0"
    with pytest.raises(ValueError, match="speed has no ratios"):
        plots.figure_of("speed", pd.DataFrame([made]))


def test_what_needs_a_gpu_is_left_out_on_a_cpu_and_what_asks_nothing_always(results, monkeypatch):
    asked, done = [], argparse.Namespace(returncode=0)
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    monkeypatch.setattr(bench.subprocess, "run", lambda command, check: asked.append(command[-1]) or done)
    bench.main()
    questions = {name.removeprefix("benchmarks.") for name in asked}
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert questions | bench.NO_QUESTIONS | bench.NEED_A_GPU == files
    for name in questions:
        assert callable(importlib.import_module(f"benchmarks.{name}").rows), name


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


COSTS = [("a", "sign", 1, 0.8, 2.0), ("a", "sign", 4, 0.96, 6.0), ("a", "occlusion", 0, 0.4, 60.0)]
COSTS += [("b", *row[1:]) for row in COSTS]


def costs() -> pd.DataFrame:
    """As the benchmark of saliency makes them; overlaps with occlusion are lower by 0.1."""
    table = pd.DataFrame(COSTS, columns=["pictures", "estimator", "probes", "overlap", "forwards"])
    limits = {f"{stem}_{end}": at for stem in OVERLAPS for end, at in (("low", 0.3), ("high", 1.0))}
    return table.assign(occlusion_overlap=table["overlap"] - 0.1, n=48, **limits)


def test_cost_curves_join_the_probes_of_an_estimator_and_mark_what_is_to_reach():
    figure = cost_curves(costs(), 0.95)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "", ""]
    for axis in figure.axes:
        assert [text.get_text() for text in axis.texts] == ["1", "4"]
        assert [[0, 0.95], [1, 0.95]] in [line.get_xydata().tolist() for line in axis.lines]
    assert "probes of sign." in figure.get_supxlabel() and "n = 48 pictures" in figure.get_supxlabel()
    points = [np.concatenate([line.get_xydata() for line in axis.lines]).round(6).tolist() for axis in figure.axes]
    assert all([2, 0.8] in here and [60, 0.4] in here for here in points[:2])
    assert all([2, 0.7] in here and [60, 0.3] in here for here in points[2:])
    assert render(figure, "png").startswith(b"\x89PNG")


def test_the_cheapest_estimator_that_reaches_the_overlap_is_named_or_the_nearest():
    lines = saliency.cheapest(costs())
    assert len(lines) == 4
    assert lines[0].endswith("top 30%, a: cheapest is sign with 4 probes, 0.960 at 6.0 forward passes")
    assert lines[3].endswith("b: none reaches it, nearest is sign with 4 probes, 0.860 at 6.0 forward passes")


def test_saliency_is_compared_with_both_references_and_an_estimator_that_is_one_agrees_wholly():
    reference = torch.rand(4, 10)
    row = saliency.agreement(reference[None], reference, "occlusion_overlap")
    assert row == dict.fromkeys(("occlusion_overlap", "occlusion_overlap_low", "occlusion_overlap_high"), 1.0) | {
        "occlusion_spearman": pytest.approx(1.0)
    }
    assert saliency.agreement(-reference[None], reference, "overlap")["overlap"] == 0
    assert set(saliency.REFERENCES) == set(OVERLAPS)
    model, inputs = scored_models.mdlm(), scored_models.inputs(8)
    for tried in saliency.estimators():
        scores = tried.score(model, *inputs, seed=0)
        assert scores.shape == inputs[0].shape[:2] and scores.min() >= 0, tried.name


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


def mdlms() -> list:
    return [scored_models.mdlm(), loops.Encoder(scored_models.mdlm())]


def test_transformers_encoder_and_plain_losses_are_ours_on_the_same_draws():
    own, peer = mdlms()
    config, draw = own.config, torch.Generator().manual_seed(0)
    features = torch.randn(3, config.vision_length, config.vision_features, generator=draw)
    words = [torch.randint(4, config.vocab_size, (3, n)) for n in (config.prompt_length, config.response_length)]
    assert torch.allclose(own.logits(own.project(features), *words), peer(features, *words), atol=1e-5)
    losses = [
        masked_diffusion_loss(own, own.project(features), *words, torch.Generator().manual_seed(1)),
        loops.masked_loss(peer, features, *words, torch.Generator().manual_seed(1)),
    ]
    gradients = [torch.autograd.grad(loss, m.head.weight)[0] for loss, m in zip(losses, (own, peer), strict=True)]
    assert torch.allclose(*losses, rtol=1e-5) and torch.allclose(*gradients, atol=1e-6)


def test_the_plain_loss_of_diffusers_is_ours_on_the_same_draws():
    pipe = load_editor(str(CHECKPOINTS / "editor"))
    latents, text = torch.randn(2, 20, 4, 16, 16), torch.randn(20, 5, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        ours, plain = (
            loss(pipe, *latents, text, text[:1], torch.Generator().manual_seed(1))
            for loss in (edit_loss, loops.instruct_pix2pix_loss)
        )
    assert torch.allclose(ours, plain, rtol=1e-4)


def test_a_whole_step_is_timed_beside_a_plain_one_and_its_products_counted(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 1)
    model, layer = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    layer.load_state_dict(model.state_dict())
    x = torch.randn(64, 64)
    losses = (lambda draw: model(x).square().mean()), (lambda draw: layer(x).square().mean())
    row = training.whole_step("case", (model, layer), losses, 64, "plain loop", chosen(rounds=1))
    assert row["difference"] == 0 and 0 < row["products"] < 1 and row["case"] == "case, whole step"


def test_our_model_as_the_peers_call_it_gives_its_own_logits_with_and_without_their_caches():
    model, (vision, prompt) = scored_models.mdlm(), scored_models.inputs(8, 1)
    whole, length = decoders.Whole(model, vision, prompt), model.config.response_length
    response = torch.randint(4, model.config.vocab_size, (1, length))
    x = torch.cat([torch.full((1, whole.before.shape[1]), model.config.pad_id), response], 1)
    with torch.no_grad():
        all_of_it = whole(x, use_cache=True)
        expected = decoders.Peer(model, vision, prompt)(response).logits
        start = x.shape[1] - length
        prefix = [tuple(part[:, :, :start] for part in layer) for layer in all_of_it.past_key_values]
        midst = torch.zeros_like(x).bool()
        midst[:, start] = True
        replaced = whole(x[midst][None], past_key_values=all_of_it.past_key_values, replace_position=midst)
    assert torch.allclose(all_of_it.logits[:, start:], expected, atol=1e-5)
    assert torch.allclose(whole(x[:, start:], past_key_values=prefix).logits, expected, atol=1e-5)
    assert torch.allclose(replaced.logits, expected[:, :1], atol=1e-5)


def test_peers_loops_are_read_from_their_checkouts_without_their_models(tmp_path, capsys):
    (tmp_path / "generate.py").write_text("from model.modeling_llada import LLaDAModelLM\nway = LLaDAModelLM")
    assert decoders.loaded(tmp_path).way is None
    assert decoders.loaded(None, "--fast-dllm") is None and "No --fast-dllm" in capsys.readouterr().out


def test_every_way_of_decoding_is_compared_with_one_by_one():
    case = decoding.random(2, 4, 4)
    rows = list(decoding.faces(case, None, None, chosen(rounds=1)))
    assert [row["kept"] for row in rows if row["ours"] == "one by one"] == [1.0]
    assert {row["ours"] for row in rows} >= {"threshold 0.95, stop", "8 steps", "threshold 0.9"}
    assert all(0 <= row[share] <= 1 for row in rows for share in ("agreement", "kept", "peer_kept"))


def test_the_score_at_length_is_carried_on_from_two_depths_with_and_without_the_authors(capsys):
    asked = argparse.Namespace(device="cpu", rounds=1, threads=1, disp=None)
    table = pd.DataFrame(saliency_cost.rows(asked, "toy"))
    assert "No --disp" in capsys.readouterr().out
    assert table["case"].unique().tolist() == ["1 layer", "2 layers", "32 layers"]
    assert set(table["ours"]) == {*saliency_cost.WAYS, saliency_cost.EXACT} - {saliency_cost.KEPT}
    again = table[table["ours"] != saliency_cost.EXACT].set_index("case")
    assert (again["overlap"] > 0.9).all() and saliency_cost.carried(3.0, 5.0) == 65
    few, more, all_of_them = again["ours_gb"]
    assert np.isclose(all_of_them, saliency_cost.carried(few, more)) if more > few else np.isnan(all_of_them)


def test_the_full_sizes_are_the_published_ones():
    with torch.device("meta"):
        model = full_size.LladaVModel(full_size.LladaVConfig())
    pipe = full_size.instruct_pix2pix("meta")
    count = {"LLaDA-V": sum(p.numel() for p in model.parameters())}
    count["U-Net"] = sum(p.numel() for p in pipe.unet.parameters())
    assert 8.3e9 < count["LLaDA-V"] < 8.6e9  # 16.9 GB in bfloat16
    assert 859e6 < count["U-Net"] < 860e6  # Stable Diffusion 1.5's, with eight input channels


class Stranger(torch.nn.Module):
    """Masks the vision tokens whose sum with the noise is highest, where the authors of DiSP do."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(parity_disp.MASK + 1, 4)
        self.model.forward = lambda inputs_embeds: inputs_embeds
        self.requires_grad_(False)

    def generate_prompt_mask_kl_approx(self, prompt, *, img_mask_ratio, fisher_num_probes, topk_vocab, **_):
        first, last = parity_disp.PLACE, prompt.shape[1] - 1
        prompt = self.model(inputs_embeds=prompt).clone()
        p = torch.full((1, 1, topk_vocab), 1 / topk_vocab, requires_grad=True)
        self.attached = torch.sqrt(p).requires_grad
        noise = sum(torch.randn_like(p).sum() for _ in range(fisher_num_probes))
        order = torch.argsort(prompt[0, first:last].sum(1) + noise, descending=True)
        top = first + order[: int(img_mask_ratio * (last - first))]
        prompt[0, top] = self.model.embed_tokens(torch.tensor([parity_disp.MASK]))
        self.model(inputs_embeds=prompt)
        return top


@pytest.mark.parametrize("constant", [True, False])
def test_parity_reads_the_authors_scores_and_masks_from_what_they_call(constant):
    model, ids = Stranger(), torch.arange(parity_disp.PLACE + 2)[None]
    vision, noise = torch.randn(1, 5, 4), torch.randn(2, 1, 1, 3)
    run = parity_disp.their_run(model, vision, ids, noise, constant=constant, ratio=0.5)
    assert torch.allclose(run.scores, vision[0].sum(1) + noise.sum())
    top = vision[0].sum(1).topk(2).indices
    assert run.masked.nonzero()[:, 0].tolist() == sorted(top.tolist())
    assert run.answer.tolist() == (parity_disp.PLACE + top).tolist()
    assert model.attached is not constant and not model.model._forward_pre_hooks
    assert torch.sqrt(torch.ones(1, requires_grad=True)).requires_grad


def test_scores_on_given_noise_are_the_estimate_and_through_the_probe_the_derivative_of_its_product():
    model, (vision, prompt) = scored_models.Linear(), scored_models.inputs(batch=1)
    vision = vision.double()
    noise = torch.randn(3, 1, scored_models.POSITIONS, scored_models.VOCABULARY, dtype=torch.float64)

    def product(moved, held=None):
        logits = model.logits(moved, prompt, None).sort(descending=True).values
        probes = fisher_probe(logits.softmax(-1) if held is None else held, noise)
        return (probes * logits).sum((1, 2, 3))

    held = model.logits(vision, prompt, None).sort(descending=True).values.softmax(-1)
    wanted = torch.zeros(2, vision.shape[1], dtype=torch.float64)
    for k in range(vision.shape[1]):
        step = torch.zeros_like(vision)
        step[0, k] = 1e-5 * (model.mask_embedding - vision[0, k])
        for row, p in enumerate((held, None)):
            slope = (product(vision + step, p) - product(vision - step, p)) / 2e-5
            wanted[row, k] = slope.square().mean() / 2
    assert torch.allclose(parity_disp.our_scores(model, vision, prompt, noise).double(), wanted[0], rtol=1e-5)
    assert torch.allclose(parity_disp.through_the_probe(model, vision, prompt, noise)[0], wanted[1], rtol=1e-5)
    assert not torch.allclose(wanted[0], wanted[1], rtol=0.1)


def test_float64_reaches_into_casts_and_is_left_again():
    model = torch.nn.Linear(2, 2)
    with parity_disp.in_float64(model):
        kinds = model.weight.dtype, torch.float32, torch.zeros(1).dtype, torch.zeros(1).float().dtype
    assert set(kinds) == {torch.float64}
    left = model.weight.dtype, torch.float32, torch.zeros(1).dtype, torch.zeros(1, dtype=torch.float64).float().dtype
    assert len(set(left)) == 1 and left[0] is not torch.float64
