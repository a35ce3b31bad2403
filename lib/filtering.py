"""What filters by attention entropy keep of a poisoned training set."""

from __future__ import annotations

import sys

import pandas as pd

from lib import filters
from lib.attacks.mdlm import poisoned_mdlm, training_questions
from lib.config import Run
from lib.filters import attention, entropy, higher_half, low_entropy_cluster, separation
from lib.intervals import over_clusters
from lib.purification import poisoned_training_set, purification_spec
from lib.store import code_digest

KEEP = {
    "BYE-style filtering": lambda entropies: ~low_entropy_cluster(entropies),
    "BYE's score, half kept": higher_half,
}


def filtered(run: Run) -> pd.DataFrame:
    """Every filter on the profile's poisoned set, under its compromised model, from the store if measured before.

    Knows which samples are poisoned, which the defender does not. Columns defence, separation (`lib.filters`, of the
    layer where it is greatest), dropped (share), value (poisoned share of what is kept), low, high, n, interval.
    """

    def make() -> pd.DataFrame:
        mdlm = poisoned_mdlm(run)[0]
        _, table, plan, _ = training_questions(run)
        poisoned, pictures = plan.poisoned, table["image"].to_numpy()
        entropies = entropy(attention(mdlm, poisoned_training_set(run, mdlm), run.profile.disp.batch))
        apart, rows = max(map(separation, entropies)), []
        for name, keep in KEEP.items():
            kept = keep(entropies)
            about = {"defence": name, "separation": apart, "dropped": float((~kept).double().mean())}
            rows.append(about | over_clusters(poisoned[kept], pictures[kept.numpy()].tolist()))
        return pd.DataFrame(rows)

    spec = purification_spec(run) | {"filtering": code_digest(filters, sys.modules[__name__])}
    return run.store.table("filtered", spec, make)
