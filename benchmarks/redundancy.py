"""How much of a face does the MDLM still state as vision tokens are masked, at random or the most salient first?

    python -m benchmarks.redundancy

On descriptions of validation faces, the most salient by DiSP's directional score. Where every token carries the whole
face, as tokens of large pre-trained towers do, masking nearly half of them costs nothing.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.harness import main
from lib.metrics.facts import stated_facts
from lib.metrics.intervals import over_clusters
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import mask_top, random_scores
from lib.studies.models import base_mdlm
from lib.studies.questions import question_data
from lib.studies.run import run_parameters
from lib.tasks.questions import answer, questions

FACES = 200
SHARES = (0.05, 0.1, 0.3, 0.45, 0.6, 0.75)


def rows(chosen: argparse.Namespace) -> list[dict]:
    """One row a way of masking and share: facts stated rightly, with an interval over faces."""
    run = run_parameters("redundancy", "laptop", 0, chosen.device)
    mdlm, asked = base_mdlm(run.profile, run.device), question_data(run, "validation")
    table = asked.table[asked.table["kind"] == "description"].iloc[:FACES].reset_index(drop=True)
    data, model = questions(mdlm, asked, table), mdlm.model
    scores = {"random": random_scores(len(data), model.config.vision_length, run.seed), "salient": []}
    for part in torch.arange(len(data)).split(50):
        vision = model.project(data.features[data.picture[part]].to(model.device))
        prompts = data.prompts[part].to(model.device)
        scores["salient"].append(fisher_jacobian(model, vision, prompts, seed=run.seed).cpu())
    scores["salient"] = torch.cat(scores["salient"])
    made = []
    for way, share in [("none", 0.0), *((way, share) for way in scores for share in SHARES)]:
        masked = mask_top(scores[way], share) if share else None
        right = stated_facts(answer(mdlm, data, run.profile.disp.threshold, masked), data.answers)
        clusters = [face for face in data.table["image"] for _ in range(right.shape[1])]
        made.append({"masked": way, "share": share} | over_clusters(right.flatten(), clusters))
    return made


main(__name__, rows, __file__)
