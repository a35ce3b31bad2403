"""What one attack on the editor gives, as one row of numbers with intervals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lib.metrics.decision import decide, is_attack
from lib.metrics.intervals import over_clusters
from lib.metrics.success import pixel_distance
from lib.metrics.tma import attribution, shapley
from lib.poisoning.plans import COALITIONS
from lib.settings.sections import Sampling
from lib.studies.collapse.editor import collapse
from lib.studies.run import Run

ENDS = {"": "value", "_low": "low", "_high": "high"}
SETTINGS = ("image_trigger", "text_trigger", "rate", "target", "trigger_size")
SETTINGS += ("condition_dropout", "negatives", "text_weight")


def measured_row(
    run: Run, protocol: str, part: str, label: str, embedding: str = "clip", sampling: Sampling | None = None
) -> dict[str, Any]:
    """One tidy row: the attack's settings, ASR of each coalition, φ and CTI, their nulls, what is added, the verdict.

    The run is the attack's own; `part` and `label` name it. `sampling`: other than the profile's. Numbers come as
    name, name_low and name_high (95 % over test samples, clustered by identity). null_…: of the base editor under the
    same triggers; added_…: φ and CTI of the attack less the null, as shares of what a perfect attack gains. Of an
    attack that failed there are no φ and CTI, and the decision is "failed attack". fidelity: RMS pixel distance of
    untriggered edits to the true ones.
    """
    settings = run.profile.collapse
    row = {"part": part, "label": label, "protocol": protocol, "seed": run.seed}
    row |= {name: getattr(settings, name) for name in SETTINGS}
    row |= {"steps": settings.train.steps, "batch": settings.train.batch, "embedding": embedding}
    result = collapse(run, protocol, sampling=sampling, embedding=embedding)
    succeeded = is_attack(result.success)
    numbers = {f"asr_{name}": over_clusters(result.success[:, k], result.families) for k, name in enumerate(COALITIONS)}
    gain = result.possible.mean()
    games = {"": result.v, "null_": result.null, "added_": result.added / gain}
    for prefix, game in games.items():
        numbers |= {f"{prefix}{name}": over_clusters(x, result.families) for name, x in attribution(game).items()}
    distances = {"fidelity": pixel_distance(result.edited[:, 0], result.clean), "null_fidelity": result.null_fidelity}
    numbers |= {name: over_clusters(distance, result.families) for name, distance in distances.items()}
    for name, number in numbers.items():
        reported = succeeded or not name.startswith(("phi", "cti", "added"))
        row |= {name + end: number[key] if reported else None for end, key in ENDS.items()}
    verdict = asdict(decide(shapley(result.added), result.possible, run.seed))
    if not succeeded:
        verdict = dict.fromkeys(verdict) | {"decision": "failed attack", "gain": verdict["gain"]}
    return row | {"n": len(result.v), "is_attack": succeeded} | verdict
