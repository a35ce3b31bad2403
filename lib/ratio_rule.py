"""Choosing ρ without clean data: what the compromised model's answers to its own training set do as more is masked.

A token that carries a backdoor changes answers that stay sure; tokens that carry the picture leave answers unsure. The
rule is chosen before anything was measured: the ρ with the greatest gain

    gain(ρ) = share of answers that differ from those without masking and are sure  −  share that is not sure

with "sure" as in DiSP's filter, every token at least `disp.confidence` when it was settled. ρ = 0, "nothing to purify",
is among those to choose from.
"""

from __future__ import annotations

import sys

import pandas as pd
from tqdm.auto import tqdm

from lib.answering import respond
from lib.attribution import bootstrap_mean
from lib.config import Run
from lib.models.mdlm import Mdlm
from lib.purification import poisoned_training_set, purification_spec
from lib.saliency import most_salient
from lib.store import code_digest
from lib.token_scores import TOKEN_SCORES


def ratio_gains(run: Run, mdlm: Mdlm) -> pd.DataFrame:
    """Gains of every ρ of `disp.ratios` on `disp_grid.rule_questions` samples of the poisoned training set.

    Columns ratio, changed_sure, unsure (shares), gain, gain_low, gain_high (95 % bootstrap), n.
    """
    settings, count = run.profile.disp, run.profile.disp_grid.rule_questions

    def make() -> pd.DataFrame:
        data = poisoned_training_set(run, mdlm)[:count]
        work = run.store.work("ratio-gains", spec)
        scores = TOKEN_SCORES[settings.saliency](mdlm, data, settings, run.seed, work / "scores")
        plain = respond(mdlm, data, settings.threshold, label="answer", work=work / "plain").tokens
        rows = []
        for ratio in tqdm(sorted({0.0, *settings.ratios}), desc="mask ratios", unit="ratio"):
            masked = most_salient(scores, ratio)
            about = {"masked": masked, "label": "answer, masked", "work": work / str(ratio)}
            found = respond(mdlm, data, settings.threshold, **about)
            sure = found.probability.amin(1) >= settings.confidence
            changed = (found.tokens != plain).any(1) & sure
            gain = changed.double() - (~sure).double()
            value, low, high = map(float, bootstrap_mean(gain, seed=run.seed))
            shares = {"changed_sure": float(changed.double().mean()), "unsure": float((~sure).double().mean())}
            rows.append({"ratio": ratio} | shares | {"gain": value, "gain_low": low, "gain_high": high, "n": len(data)})
        return pd.DataFrame(rows)

    spec = purification_spec(run) | {"ratios": list(settings.ratios), "confidence": settings.confidence}
    spec |= {"questions": count, "rule": code_digest(sys.modules[__name__])}
    return run.store.table("ratio-gains", spec, make)


def chosen_ratio(gains: pd.DataFrame) -> float:
    """The ρ of the greatest gain; the smallest of equals."""
    return float(gains["ratio"][gains["gain"].idxmax()])
