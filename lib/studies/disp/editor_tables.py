"""What masking does to the compromised editor, and what purification leaves of its backdoor.

    masking_curve(run, "and")           # masked at inference, no training
    purification_table(run, "and")      # before and after, under all coalitions

Both are from the store if they were made before.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from lib.defences.edit_purification import edit_masked
from lib.metrics.intervals import over_clusters
from lib.metrics.success import edit_succeeds, pixel_distance
from lib.metrics.tma import attribution
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import COALITIONS
from lib.runtime.keys import code_digest
from lib.saliency.edits import CONDITIONS
from lib.studies.attacks.editor import poisoned_editor, trigger_pair
from lib.studies.collapse.editor import SEED, Collapse, collapse, edits_spec, held_out, stored_edits, valued
from lib.studies.disp.editor import RATIO, purified_editor, purified_spec
from lib.studies.run import Run
from lib.tasks.edits import edits_under_coalitions, triggered

PROTOCOL = "and"  # of the attack that the study in full purifies
BEFORE = "before"
SHARES = (0.0, 0.02, 0.06, 0.12, 0.25, 0.5)  # of the patches, masked at inference; chosen before this was measured


def masking_curve(run: Run, protocol: str) -> pd.DataFrame:
    """Masked at inference: ASR with both triggers, and the distance of untriggered edits to the true ones, by share.

    Columns way, share, metric, value, low, high, n, interval. Of the instruction, a share above 0 means one token.
    """
    settings = run.profile.collapse

    def make() -> pd.DataFrame:
        data, triples, source, clean = held_out(run)
        goal = attack_target(settings.target)(source)
        pipe, _ = poisoned_editor(run, protocol)
        trigger_pair(run)[1].check(pipe.tokenizer, texts)
        rows = []
        for way, share in [("picture", share) for share in SHARES] + [("instruction", RATIO)]:
            edited = []
            for mask in (0, len(COALITIONS) - 1):
                conditions = triggered(data, triples, torch.full((len(triples),), mask), *trigger_pair(run))
                edited.append(edit_masked(pipe, *conditions, way, share, settings.sampling, run.seed))
            success = edit_succeeds(edited[1][:, None], goal[:, None], clean[:, None])[:, 0]
            outcomes = {"ASR, both": success, "distance to the true edit": pixel_distance(edited[0], clean)}
            about, people = {"way": way, "share": share}, triples["family"].tolist()
            rows += [about | {"metric": metric} | over_clusters(x, people) for metric, x in outcomes.items()]
        return pd.DataFrame(rows)

    code = [code_digest(__name__), code_digest("lib.defences.edit_purification")]
    spec = edits_spec(run, protocol) | {"purification": code}
    return run.store.table("editor-masking", spec, make)


def purified_collapse(run: Run, protocol: str, way: str) -> Collapse:
    """`collapse` of the purified editor."""
    edits, triples, *_ = held_out(run)
    spec, sampling = edits_spec(run, protocol) | purified_spec(run, protocol, way), run.profile.collapse.sampling

    def sample() -> Tensor:
        pipe = purified_editor(run, protocol, way)
        return edits_under_coalitions(pipe, edits, triples, *trigger_pair(run), sampling, SEED)

    return valued(run, spec, stored_edits(run, "purified-coalition-edits", spec, sample), sampling)


def purification_table(run: Run, protocol: str) -> pd.DataFrame:
    """Before and after purification by each of `CONDITIONS`: ASR of every coalition, φ_I, φ_T, CTI and fidelity.

    Columns model, metric, value, low, high (95 % over identities), n, interval.
    """
    rows = []
    for name in (BEFORE, *CONDITIONS):
        result = collapse(run, protocol) if name == BEFORE else purified_collapse(run, protocol, name)
        outcomes = {f"ASR, {coalition}": result.success[:, k] for k, coalition in enumerate(COALITIONS)}
        outcomes |= attribution(result.v)
        outcomes["distance to the true edit"] = pixel_distance(result.edited[:, 0], result.clean)
        people = result.families
        rows += [{"model": name, "metric": metric} | over_clusters(x, people) for metric, x in outcomes.items()]
    return pd.DataFrame(rows)
