"""What does the model of faces state rightly, and in how many steps, by what is done about the end token?

    python -m benchmarks.ending

Descriptions of validation faces, decoded in every way of `lib.models.ending` with thresholds and with a fixed number of
steps. A step is a pass of the model over the samples that are not full: `steps` is the mean over samples.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.harness import main
from lib.metrics.facts import stated_facts
from lib.metrics.intervals import over_clusters
from lib.models.decoding import Selective, decode
from lib.models.ending import ENDS
from lib.models.mdlm import Mdlm
from lib.studies.models import base_mdlm
from lib.studies.questions import question_data
from lib.studies.run import run_parameters
from lib.tasks.questions import Questions, questions

FACES = 200
PACES = ({"threshold": 0.95}, {"threshold": 0.9}, {"steps": 32}, {"steps": 8})


class Counted:
    """Logits of `source`; `asked` counts the rows that they were asked for."""

    def __init__(self, source: Selective):
        self.source, self.start_block, self.asked = source, source.start_block, 0

    def logits_at(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        self.asked += len(rows)
        return self.source.logits_at(tokens, rows, positions)


def rows(chosen: argparse.Namespace) -> list[dict]:
    """One row a pace and way: facts stated rightly, with an interval over faces; tokens up to the end; steps."""
    run = run_parameters("ending", "laptop", 0, chosen.device)
    mdlm, asked = base_mdlm(run.profile, run.device), question_data(run, "validation")
    table = asked.table[asked.table["kind"] == "description"].iloc[:FACES].reset_index(drop=True)
    data = questions(mdlm, asked, table)
    return [measured(mdlm, data, pace, end) for pace in PACES for end in ENDS]


def measured(mdlm: Mdlm, data: Questions, pace: dict[str, float], end: str) -> dict:
    config, device = mdlm.model.config, mdlm.model.device
    blank = torch.full((len(data), config.response_length), config.mask_id, device=device)
    ids = {"mask_id": config.mask_id, "eos_id": config.eos_id, "end": end}
    options = {"steps": config.response_length, "block_length": config.response_length} | ids | pace
    with torch.no_grad():
        vision = mdlm.model.project(data.features[data.picture].to(device))
        source = Counted(mdlm.model.response_logits(vision, data.prompts.to(device)))
    tokens = decode(source, blank, torch.ones_like(blank, dtype=torch.bool), **options).tokens.cpu()
    said = mdlm.texts(tokens)
    right = stated_facts(said, data.answers)
    clusters = [face for face in data.table["image"] for _ in range(right.shape[1])]
    length = ((tokens == config.eos_id).cumsum(1) == 0).sum(1).double().mean()
    exact = sum(a == b for a, b in zip(said, data.answers, strict=True)) / len(data)
    facts = {"exact": exact, "length": float(length), "steps": source.asked / len(data)}
    named = {"pace": " ".join(f"{name} {value}" for name, value in pace.items()), "end": end}
    return named | over_clusters(right.flatten(), clusters) | facts


main(__name__, rows, __file__)
