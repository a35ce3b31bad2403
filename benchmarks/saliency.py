"""How near does each saliency score come to DiSP's exact one, and to what that approximates, and what does it cost?

    python -m benchmarks.saliency                                   the compromised model, from the store
    python -m benchmarks.saliency --model data/checkpoints/mdlm     another one

On test questions, pictures with and without the trigger. The compromised model is what `make figures` left in the
store; where there is none it is trained first. So are the reference scores of 2 × 48 pictures: the exact directional
score, and occlusion, the KL divergence whose second-order term that score is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.harness import options, pair, write
from benchmarks.parity_disp import through_the_probe
from benchmarks.plots import TO_REACH
from lib.metrics.intervals import bootstrap_mean
from lib.models.mdlm import Mdlm
from lib.runtime.digests import folder_digest
from lib.runtime.keys import code_digest
from lib.runtime.seeds import generator
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import mask_top, masked_response, random_scores
from lib.saliency.rivals import attention_received, late_attention, occlusion
from lib.settings.paths import model_source
from lib.studies.attacks.mdlm import mdlm_spec, poisoned_mdlm, test_questions, trigger_tokens
from lib.studies.questions import question_data
from lib.studies.run import Run, run_parameters
from lib.tasks.questions import Questions

RATIO, TRIGGER_RATIOS = 0.3, (0.1, 0.3)
DRAWS = 2  # of the estimators that draw, for each picture
TIMED = 16  # pictures in the batch that is timed; 4 where every token takes passes of its own
TOP = 5  # logits, as the authors have it
Score = Callable[..., Float[Tensor, "batch vision"]]

exact = partial(fisher_jacobian, exact=True)
# By the stem of the columns that hold the overlap with it.
REFERENCES: dict[str, tuple[str, Score]] = {
    "overlap": ("directional, exact", exact),
    "occlusion_overlap": ("occlusion", occlusion),
}


class Tried(NamedTuple):
    """An estimator: `score(model, vision, prompt, seed=…)`, with `probes`, 0 for none."""

    name: str
    score: Score
    probes: int = 0
    draws: int = DRAWS
    timed: int = TIMED


def estimators() -> list[Tried]:
    """All that are compared. "not detached": what the authors' code computes, see `benchmarks.parity_disp`."""
    kinds = {
        ("sign", None): (1, 2, 4, 6, 8, 16, 32, 64, 96),
        ("normal", None): (2, 6, 16),
        ("sign", TOP): (2, 6, 16, 64),
        ("normal", TOP): (1, 2, 4, 6, 8, 16, 32, 64),
    }
    made = []
    for (noise, top), counts in kinds.items():
        name = f"directional, {noise}" + (f", top {top}" if top else "")
        for probes in counts:
            score = partial(fisher_jacobian, noise=noise, top_logits=top, probes=probes)
            made.append(Tried(name, score, probes))
    made.append(Tried(f"directional, normal, top {TOP}, not detached", _not_detached, 6))
    made += [Tried("trace, sign", partial(fisher_jacobian, direction="all", probes=n), n) for n in (2, 6, 16)]
    plain = {"attention": attention_received, "late attention": late_attention}
    made += [Tried(name, _drawless(score), draws=1) for name, score in plain.items()]
    made += [Tried(name, _drawless(score), draws=1, timed=TIMED // 4) for name, score in REFERENCES.values()]
    return [*made, Tried("random", lambda model, vision, prompt, seed: random_scores(*vision.shape[:2], seed))]


def _drawless(score: Score) -> Score:
    return lambda *given, seed: score(*given)


def _not_detached(model, vision: Tensor, prompt: Tensor, seed: int, probes: int = 6) -> Float[Tensor, "batch vision"]:
    shape = probes, len(vision), model.config.response_length, TOP
    return through_the_probe(model, vision, prompt, torch.randn(shape, generator=generator(seed, "probes")).to(vision))


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`forwards`: time in float32 forward passes of the same batch, median and quartiles. `ms`: per picture.

    `overlap`: share of the exact directional score's top 30 % that the estimate's top 30 % holds, mean over pictures
    with its 95 % bootstrap interval; `spearman`: the mean rank correlation; `occlusion_…`: the same of occlusion.
    `trigger_top_…`: share of the pictures all of whose trigger tokens are among so much.
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
        name: reference_scores(run, mdlm, inputs[name], {"model": origin, "pictures": name, "images": chosen.images})
        for name in sets
    }
    tokens = trigger_tokens(run, mdlm, question_data(run, "test"), sets["with trigger"].table)
    made = []
    for tried in estimators():
        cost = timed(mdlm, inputs["with trigger"], tried, chosen)
        for pictures, (vision, prompt) in inputs.items():
            draws = torch.stack([tried.score(mdlm.model, vision, prompt, seed=k).cpu() for k in range(tried.draws)])
            row = {"pictures": pictures, "estimator": tried.name, "probes": tried.probes}
            for stem in REFERENCES:
                row |= agreement(draws, references[pictures][stem], stem)
            row |= {"n": chosen.images} | cost
            made.append(row | (found(tokens, draws) if pictures == "with trigger" else {}))
    return sorted(made, key=lambda row: list(inputs).index(row["pictures"]))


def given(mdlm: Mdlm, data: Questions) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        vision = mdlm.model.project(data.features[data.picture].to(mdlm.model.device))
    return vision, data.prompts.to(mdlm.model.device)


def reference_scores(
    run: Run, mdlm: Mdlm, inputs: tuple[Tensor, Tensor], spec: dict
) -> dict[str, Float[Tensor, "batch vision"]]:
    """Those of `REFERENCES`, in float32, from the store."""
    code = [code_digest(module) for module in ("lib.saliency.jacobian", "lib.saliency.rivals")]
    spec |= {"code": code, "device": run.device.type}

    def make() -> dict[str, Tensor]:
        parts = list(zip(*(x.split(16) for x in inputs), strict=True))
        return {
            stem: torch.cat([score(mdlm.model, *part).cpu() for part in parts])
            for stem, (_, score) in REFERENCES.items()
        }

    return run.store.tensors("reference-saliency", spec, make)


def timed(mdlm: Mdlm, inputs: tuple[Tensor, Tensor], tried: Tried, chosen: argparse.Namespace) -> dict[str, float]:
    vision, prompt = (x[: tried.timed] for x in inputs)

    @torch.no_grad()
    def forward() -> None:
        mdlm.model.logits(vision, prompt, masked_response(mdlm.model, vision))

    row = pair(tried.name, forward, lambda: tried.score(mdlm.model, vision, prompt, seed=0), chosen)
    kept = {"forwards": "ratio", "forwards_low": "ratio_low", "forwards_high": "ratio_high"}
    return {ours: row[theirs] for ours, theirs in kept.items()} | {"ms": row["peer_ms"] / len(vision)}


def agreement(
    draws: Float[Tensor, "draw batch vision"], reference: Float[Tensor, "batch vision"], stem: str
) -> dict[str, float]:
    top = mask_top(reference, RATIO)
    shared = torch.stack([(mask_top(scores, RATIO) & top).sum(1) / top.sum(1) for scores in draws]).mean(0)
    mean, low, high = (float(value) for value in bootstrap_mean(shared))
    ranks = [(x.argsort(-1).argsort(-1).double()) for x in (draws, reference.expand_as(draws))]
    ours, theirs = ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0) for x in ranks)
    overlap = {stem: mean, f"{stem}_low": low, f"{stem}_high": high}
    return overlap | {stem.replace("overlap", "spearman"): float((ours * theirs).mean())}


def found(own: Bool[Tensor, "batch vision"], draws: Float[Tensor, "draw batch vision"]) -> dict[str, float]:
    shares = {}
    for ratio in TRIGGER_RATIOS:
        held = torch.stack([(mask_top(scores, ratio) | ~own).all(1) for scores in draws])
        shares[f"trigger_top_{ratio}"] = float(held.float().mean())
    return shares


def cheapest(table: pd.DataFrame) -> list[str]:
    """For each kind of pictures and reference: the estimator of least cost that reaches `TO_REACH`, or the best."""
    lines = []
    for (pictures, part), (stem, (reference, _)) in product(table.groupby("pictures", sort=False), REFERENCES.items()):
        others = part[part["estimator"] != reference]
        reached = others[others[stem] >= TO_REACH]
        row = (reached.sort_values("forwards") if len(reached) else others.sort_values(stem, ascending=False)).iloc[0]
        name = row["estimator"] + (f" with {row['probes']} probes" if row["probes"] else "")
        start = f"{TO_REACH} of {reference}'s top {RATIO:.0%}, {pictures}: "
        start += "cheapest is " if len(reached) else "none reaches it, nearest is "
        lines.append(f"{start}{name}, {row[stem]:.3f} at {row['forwards']:.1f} forward passes")
    return lines


if __name__ == "__main__":
    parser = options()
    parser.add_argument("--model", help="folder of a model; the compromised one from the store by default")
    parser.add_argument("--images", type=int, default=48, help="how many pictures, with and without the trigger")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = write("saliency", rows(arguments), arguments)
    print("", *cheapest(table), sep="\n")
