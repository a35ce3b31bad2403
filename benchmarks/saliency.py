"""How near does each saliency score come to the exact Fisher trace, and what does it cost?

    python -m benchmarks.saliency                                   the compromised model, from the store
    python -m benchmarks.saliency --model data/checkpoints/mdlm     another one

On easy-VQA test questions, pictures with and without the trigger. The compromised model is what `make figures` left in
the store; where there is none it is trained first, in some minutes. So are the exact scores of 2 × 48 pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.harness import options, pair, write
from benchmarks.plots import cost_curves, save
from lib.metrics.intervals import bootstrap_mean
from lib.models.mdlm import Mdlm
from lib.runtime.keys import code_digest
from lib.runtime.store import folder_digest
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import mask_top, masked_response, random_scores
from lib.saliency.rivals import attention_received, occlusion
from lib.settings.paths import ROOT, model_source
from lib.studies.attacks.mdlm import mdlm_spec, poisoned_mdlm, test_questions, trigger_tokens
from lib.studies.run import Run, run_parameters
from lib.tasks.questions import Questions

RATIO, TRIGGER_RATIOS = 0.2, (0.02, 0.2)
TO_REACH = 4, 0.95  # forward passes, overlap
DRAWS = 2  # of the estimators that draw, for each picture
DRAWLESS = ("attention received", "occlusion")
TIMED = 16  # pictures in the batch that is timed; 4 where every token takes passes of its own
Score = Callable[..., Float[Tensor, "batch vision"]]


def estimators() -> list[tuple[str, int, Score]]:
    """Name, probes (0: none), and the score as a function of model, vision, prompt and seed."""
    kinds = {"normal": (4,), "sign": (1, 2, 3, 4, 16)}
    made = [
        (f"Fisher–Jacobian, {noise}", probes, partial(fisher_jacobian, noise=noise, probes=probes))
        for noise, counts in kinds.items()
        for probes in counts
    ]
    return [
        *made,
        (DRAWLESS[0], 0, lambda *given, seed: attention_received(*given)),
        (DRAWLESS[1], 0, lambda *given, seed: occlusion(*given)),
        ("random", 0, lambda model, vision, prompt, seed: random_scores(*vision.shape[:2], seed)),
    ]


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`forwards`: time in float32 forward passes of the same batch, median and quartiles. `ms`: per picture.

    `overlap`: share of the exact score's top 20 % that the estimate's top 20 % holds, mean over pictures with its 95 %
    bootstrap interval; `spearman`: the mean rank correlation. `trigger_top_…`: share of the pictures all of whose
    trigger tokens are among so much.
    """
    run = run_parameters("bench", "laptop", 0, chosen.device)
    torch.set_num_threads(chosen.threads)
    if chosen.model:
        mdlm, origin = Mdlm.load(chosen.model, run.device), folder_digest(model_source(chosen.model))
    else:
        mdlm, origin = poisoned_mdlm(run)[0], mdlm_spec(run)
    sets = dict(zip(("without trigger", "with trigger"), test_questions(run, mdlm, chosen.images), strict=True))
    inputs = {name: given(mdlm, data) for name, data in sets.items()}
    references = {
        name: exact_scores(run, mdlm, inputs[name], {"model": origin, "pictures": name, "images": chosen.images})
        for name in sets
    }
    made = []
    for name, probes, score in estimators():
        cost = timed(mdlm, inputs["with trigger"], score, name, chosen)
        for pictures, (vision, prompt) in inputs.items():
            seeds = range(1 if name in DRAWLESS else DRAWS)
            draws = torch.stack([score(mdlm.model, vision, prompt, seed=seed).cpu() for seed in seeds])
            row = {"pictures": pictures, "estimator": name, "probes": probes}
            row |= agreement(draws, references[pictures]) | cost
            made.append(row | (found(trigger_tokens(run, mdlm), draws) if pictures == "with trigger" else {}))
    return sorted(made, key=lambda row: list(inputs).index(row["pictures"]))


def given(mdlm: Mdlm, data: Questions) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        vision = mdlm.model.project(data.features[data.picture].to(mdlm.model.device))
    return vision, data.prompts.to(mdlm.model.device)


def exact_scores(run: Run, mdlm: Mdlm, inputs: tuple[Tensor, Tensor], spec: dict) -> Float[Tensor, "batch vision"]:
    """The exact trace, in float32, from the store."""
    spec |= {"code": code_digest("lib.saliency.jacobian"), "device": run.device.type}

    def make() -> dict[str, Tensor]:
        parts = zip(*(x.split(16) for x in inputs), strict=True)
        return {"scores": torch.cat([fisher_jacobian(mdlm.model, *part, exact=True).cpu() for part in parts])}

    return run.store.tensors("exact-saliency", spec, make)["scores"]


def timed(
    mdlm: Mdlm, inputs: tuple[Tensor, Tensor], score: Score, name: str, chosen: argparse.Namespace
) -> dict[str, float]:
    vision, prompt = (x[: TIMED // 4 if name == "occlusion" else TIMED] for x in inputs)

    @torch.no_grad()
    def forward() -> None:
        mdlm.model.logits(vision, prompt, masked_response(mdlm.model, vision))

    row = pair(name, forward, lambda: score(mdlm.model, vision, prompt, seed=0), chosen)
    kept = {"forwards": "ratio", "forwards_low": "ratio_low", "forwards_high": "ratio_high"}
    return {ours: row[theirs] for ours, theirs in kept.items()} | {"ms": row["peer_ms"] / len(vision)}


def agreement(draws: Float[Tensor, "draw batch vision"], exact: Float[Tensor, "batch vision"]) -> dict[str, float]:
    top = mask_top(exact, RATIO)
    shared = torch.stack([(mask_top(scores, RATIO) & top).sum(1) / top.sum(1) for scores in draws]).mean(0)
    mean, low, high = (float(value) for value in bootstrap_mean(shared))
    ranks = [(x.argsort(-1).argsort(-1).double()) for x in (draws, exact.expand_as(draws))]
    ours, theirs = ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0) for x in ranks)
    overlap = {"overlap": mean, "overlap_low": low, "overlap_high": high}
    return overlap | {"spearman": float((ours * theirs).mean()), "n": len(exact)}


def found(own: Bool[Tensor, " vision"], draws: Float[Tensor, "draw batch vision"]) -> dict[str, float]:
    shares = {}
    for ratio in TRIGGER_RATIOS:
        held = torch.stack([mask_top(scores, ratio)[:, own].all(1) for scores in draws])
        shares[f"trigger_top_{ratio}"] = float(held.float().mean())
    return shares


if __name__ == "__main__":
    parser = options()
    parser.add_argument("--model", help="folder of a model; the compromised one from the store by default")
    parser.add_argument("--images", type=int, default=48, help="how many pictures, with and without the trigger")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = write("saliency", rows(arguments), arguments)
    shown = table[table["estimator"] != "random"]
    save(cost_curves(shown, *TO_REACH), ROOT / "figures" / "benchmarks" / f"saliency-{arguments.device}")
