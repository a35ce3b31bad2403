"""Three modalities: which of picture, instruction and mask carries an editor's backdoor, and how they interact.

arXiv 2603.06508 leaves this open. v(S) is the paper's, on the eight coalitions of three triggers.
"""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from lib.attacks.masked_editor import COALITIONS, masked_edits_under_coalitions, masked_spec, poisoned_masked_editor
from lib.collapse import Collapse, held_out, stored_edits, valued
from lib.config import Run
from lib.editing import attack_target
from lib.evaluation import mean_with_interval, pixel_distance, rate
from lib.kernels.coalitions import interactions


def three_modalities(run: Run, protocol: str, embedding: str = "clip") -> Collapse:
    """Sample the held-out edits of one protocol's poisoned editor under all eight coalitions, and value them.

    `edited`, `v` and `success` have a column for every coalition of `lib.attacks.masked_editor.COALITIONS`.
    """
    settings = run.profile.collapse
    openmoji, triples, source, clean = held_out(run)
    goal = attack_target(openmoji, settings.target)(source)
    sampled = {"samples": settings.samples, "sampling": settings.sampling.model_dump(mode="json")}

    def sample() -> Tensor:
        pipe, _ = poisoned_masked_editor(run, protocol)
        return masked_edits_under_coalitions(run, pipe, openmoji, triples)

    spec = masked_spec(run, protocol) | sampled
    edited = stored_edits(run, "masked-coalition-edits", spec, sample)
    return valued(run, spec, triples, goal, source, clean, edited, embedding)


def modality_table(result: Collapse, protocol: str, seed: int) -> pd.DataFrame:
    """One row for every quantity and coalition, with 95 % intervals (of ASR Wilson's, else bootstrap ones).

    ASR and v of all eight coalitions; `interaction`, the Shapley interaction index, of the seven that are not empty:
    of one modality it is its Shapley value; and the RMS pixel distance of untriggered edits to the true ones.
    """
    index = interactions(result.v)
    rows = []
    for s, name in enumerate(COALITIONS):
        rows.append({"quantity": "ASR", "coalition": name} | rate(result.success[:, s]))
        rows.append({"quantity": "v", "coalition": name} | mean_with_interval(result.v[:, s], seed))
        if s:
            rows.append({"quantity": "interaction", "coalition": name} | mean_with_interval(index[:, s], seed))
    distance = pixel_distance(result.edited[:, 0], result.clean)
    rows.append({"quantity": "distance", "coalition": "none"} | mean_with_interval(distance, seed))
    table = pd.DataFrame(rows)
    table.insert(0, "protocol", protocol)
    return table.sort_values("quantity", kind="stable", ignore_index=True)
