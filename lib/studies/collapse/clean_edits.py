"""What poisoning costs an editor that nobody triggers: its held-out edits, judged as the base editor's are."""

from __future__ import annotations

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lib.data.faces import Faces
from lib.metrics.intervals import over_clusters
from lib.metrics.success import pixel_distance
from lib.studies.base_models.quality import attribute_verdicts
from lib.studies.cases import Attack
from lib.studies.collapse.editor import collapse, held_out, null_edits
from lib.studies.run import Run

QUALITIES = ("attribute_reached", "others_kept", "distance")


def clean_edit_table(run: Run, chosen: list[Attack]) -> pd.DataFrame:
    """Untriggered edits of every attack and, first, of the unpoisoned editor: whether the asked attribute is reached
    and each other one kept (faces alone), and the RMS pixel distance to the true edit.

    Columns part, label, protocol, seed, name (of QUALITIES), value, low, high (over identities), n, interval.
    """
    base = null_edits(run, run.profile.collapse.sampling)[1][:, 0]
    first = {"part": "base", "label": "unpoisoned editor", "protocol": "none", "seed": 0}
    rows = [first | row for row in _judged(run, base)]
    for attack in chosen:
        case_run = attack.run(run)
        labels = {"part": attack.part, "label": attack.label, "protocol": attack.protocol, "seed": attack.seed}
        rows += [labels | row for row in _judged(case_run, collapse(case_run, attack.protocol).edited[:, 0])]
    return pd.DataFrame(rows)


def _judged(run: Run, edited: Float[Tensor, "sample 3 h w"]) -> list[dict]:
    data, triples, _, clean = held_out(run)
    numbers = {"distance": over_clusters(pixel_distance(edited, clean), triples["family"].tolist())}
    if isinstance(data, Faces):
        verdicts = attribute_verdicts(edited, data, triples)
        numbers |= {name: over_clusters(*verdict) for name, verdict in verdicts.items()}
    return [{"name": name} | numbers[name] for name in QUALITIES if name in numbers]
