"""What masking words too restores: the collapse study's MDLM under all coalitions, before purification and after it."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from lib.saliency.words import WAYS
from lib.studies.collapse.mdlm import attribution_table, coalition_table, mdlm_collapse, under_coalitions
from lib.studies.disp.words import joint_model_spec, jointly_purified_mdlm
from lib.studies.run import Run

BEFORE = "before"


def restored_table(run: Run, protocol: str, ways: Iterable[str] = WAYS) -> pd.DataFrame:
    """The protocol's model under all coalitions, before purification and after it by each way of masking.

    Metrics are ASR, "clean answer" and log-probability of each coalition, and φ_I, φ_T and CTI of both games (there
    coalition is missing; game is missing elsewhere). Columns model, protocol, coalition, game, metric, value, low,
    high, n.
    """
    tables = []
    for name in (BEFORE, *ways):
        if name == BEFORE:
            result = mdlm_collapse(run, protocol)
        else:
            model = jointly_purified_mdlm(run, protocol, name)
            result = under_coalitions(run, model, joint_model_spec(run, protocol, name))
        games = attribution_table(result, protocol).rename(columns={"quantity": "metric"})
        tables.append(pd.concat([coalition_table(result, protocol), games]).assign(model=name))
    columns = ["model", "protocol", "coalition", "game", "metric", "value", "low", "high", "n"]
    return pd.concat(tables, ignore_index=True)[columns]
