"""Telling triggered questions from clean ones as they are asked: how concentrated saliency is, beside rival scores."""

from __future__ import annotations

import pandas as pd
import torch

from lib.defences.suspicion import input_scores
from lib.metrics.roc import auroc
from lib.runtime.keys import code_digest
from lib.studies.attacks.mdlm import poisoned_mdlm, test_questions
from lib.studies.disp.defended import clean_share
from lib.studies.disp.purification import answering_spec, scoring
from lib.studies.run import Run


def input_detection(run: Run) -> pd.DataFrame:
    """AUROC of every score on `disp.curve_questions` test questions, each without and with the trigger.

    Columns score, auroc, low, high (95 % bootstrap), average_precision, n, n_poisoned.
    """
    mdlm, count = poisoned_mdlm(run)[0], run.profile.disp.curve_questions

    def make() -> pd.DataFrame:
        share, both = clean_share(run, mdlm), test_questions(run, mdlm, count)
        how = {"threshold": run.profile.disp.threshold} | scoring(run)
        clean, hit = (input_scores(mdlm, data, share, **how) for data in both)
        rows = []
        for name in clean:
            truth = torch.arange(len(clean[name]) + len(hit[name])) >= len(clean[name])
            rows.append({"score": name} | auroc(torch.cat([clean[name], hit[name]]), truth, run.seed))
        return pd.DataFrame(rows)

    code = [code_digest(__name__), code_digest("lib.defences.suspicion")]
    spec = answering_spec(run) | {"questions": count, "detector": code}
    return run.store.table("input-detection", spec, make)
