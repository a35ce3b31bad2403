"""Choosing ρ without clean data: what the compromised model's answers to its own training set do as more is masked.

A token that carries a backdoor changes answers that stay sure; tokens that carry the picture leave answers unsure. The
rule is chosen before anything was measured: the ρ with the greatest gain

    gain(ρ) = share of answers that differ from those without masking and are sure  −  share that is not sure

an answer being sure whose every token had a probability of at least `SURE` when it was settled. ρ = 0, "nothing to
purify", is among those to choose from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.defences.self_purification import answer_masked
from lib.metrics.intervals import bootstrap_mean
from lib.models.mdlm import Mdlm
from lib.saliency.masking import mask_top
from lib.tasks.questions import Questions, respond

SURE = 0.95


def masking_gains(
    mdlm: Mdlm,
    data: Questions,
    scores: Float[Tensor, "sample vision"],
    ratios: Iterable[float],
    *,
    threshold: float,
    seed: int = 0,
    work: Path | None = None,
) -> pd.DataFrame:
    """Gains of ρ = 0 and of every one of `ratios`, the tokens with the highest `scores` masked.

    Columns ratio, changed_sure, unsure (shares), gain, gain_low, gain_high (95 % bootstrap), n. With `work`, a folder,
    answers are kept there batch by batch.
    """
    plain = respond(mdlm, data, threshold, label="answer", work=work and work / "plain").tokens
    rows = []
    for ratio in tqdm(sorted({0.0, *ratios}), desc="mask ratios", unit="ratio"):
        again = answer_masked(mdlm, data, mask_top(scores, ratio), threshold, work and work / str(ratio))
        sure = again.probability.amin(1) >= SURE
        changed = (again.tokens != plain).any(1) & sure
        gain = changed.double() - (~sure).double()
        value, low, high = map(float, bootstrap_mean(gain, seed=seed))
        shares = {"changed_sure": float(changed.double().mean()), "unsure": float((~sure).double().mean())}
        rows.append({"ratio": ratio} | shares | {"gain": value, "gain_low": low, "gain_high": high, "n": len(data)})
    return pd.DataFrame(rows)


def chosen_ratio(gains: pd.DataFrame) -> float:
    """The ρ of the greatest gain; the smallest of equals."""
    return float(gains["ratio"][gains["gain"].idxmax()])
