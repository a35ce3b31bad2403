"""ρ chosen without clean data, by `lib.defences.ratio_rule`, on the run's compromised model."""

from __future__ import annotations

import pandas as pd

from lib.defences.ratio_rule import masking_gains
from lib.models.mdlm import Mdlm
from lib.runtime.keys import code_digest
from lib.saliency.by_name import TOKEN_SCORES
from lib.studies.attacks.mdlm import poisoned_training_set
from lib.studies.disp.purification import answering_spec, scoring
from lib.studies.run import Run


def ratio_gains(run: Run, mdlm: Mdlm) -> pd.DataFrame:
    """`masking_gains` of every ρ of `disp.ratios` on `disp_grid.rule_questions` samples of the poisoned training set.

    Columns ratio, changed_sure, unsure (shares), gain, gain_low, gain_high (95 % bootstrap), n.
    """
    settings, count = run.profile.disp, run.profile.disp_grid.rule_questions

    def make() -> pd.DataFrame:
        data, work = poisoned_training_set(run, mdlm)[:count], run.store.work("ratio-gains", spec)
        scores = TOKEN_SCORES[settings.saliency](mdlm, data, **scoring(run), work=work / "scores")
        how = {"threshold": settings.threshold, "seed": run.seed, "work": work}
        return masking_gains(mdlm, data, scores, settings.ratios, **how)

    spec = answering_spec(run) | {"ratios": list(settings.ratios)}
    spec |= {"questions": count, "rule": [code_digest(__name__), code_digest("lib.defences.ratio_rule")]}
    return run.store.table("ratio-gains", spec, make)
