"""What filters by attention entropy keep of a poisoned training set."""

from __future__ import annotations

import pandas as pd

from lib.defences.filters import KEEP, attention_entropy, separation
from lib.metrics.intervals import over_clusters
from lib.runtime.keys import code_digest
from lib.studies.attacks.mdlm import poisoned_mdlm, poisoned_training_set, training_questions
from lib.studies.disp.purification import answering_spec
from lib.studies.run import Run


def filtered(run: Run) -> pd.DataFrame:
    """Every filter on the profile's poisoned set, under its compromised model, from the store if measured before.

    Knows which samples are poisoned, which the defender does not. Columns defence, separation (of the layer where it is
    greatest, see `lib.defences.filters`), dropped (share), value (poisoned share of what is kept), low, high, n,
    interval.
    """

    def make() -> pd.DataFrame:
        mdlm = poisoned_mdlm(run)[0]
        _, table, plan, _ = training_questions(run)
        poisoned, pictures = plan.poisoned, table["image"].to_numpy()
        entropies = attention_entropy(mdlm, poisoned_training_set(run, mdlm), run.profile.disp.batch)
        apart, rows = max(map(separation, entropies)), []
        for name, keep in KEEP.items():
            kept = keep(entropies)
            about = {"defence": name, "separation": apart, "dropped": float((~kept).double().mean())}
            rows.append(about | over_clusters(poisoned[kept], pictures[kept.numpy()].tolist()))
        return pd.DataFrame(rows)

    spec = answering_spec(run) | {"filtering": [code_digest(__name__), code_digest("lib.defences.filters")]}
    return run.store.table("filtered", spec, make)
