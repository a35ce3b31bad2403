"""The collapse study: a poisoned editor under all four coalitions, and which trigger carries the backdoor.

arXiv 2603.06508: v(S) = cos(z_S, z_tr) − cos(z_S, z_cl); TMA is v's Shapley value, CTI its interaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.data.interface import EditData
from lib.metrics.embeddings import load_embedding, values
from lib.metrics.success import edit_succeeds, pixel_distance
from lib.metrics.tma import attribution, interaction, shapley
from lib.models.editor import load_editor
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import COALITIONS
from lib.runtime.digests import folder_digest
from lib.runtime.keys import code_digest, registered
from lib.settings.paths import model_source
from lib.settings.profile import Sampling
from lib.studies.attacks.editor import HELD_OUT, editor_spec, poisoned_editor, trigger_pair
from lib.studies.data import data_spec, edit_data
from lib.studies.run import Run
from lib.tasks.edits import edits_under_coalitions, sample_triples

QUANTITIES = ("phi_image", "phi_text", "cti")
SEED = HELD_OUT  # of the noise too: the same for all attacks, whatever their seed
PAPER_RATE = 0.05
PAPER = {  # at that rate
    ("white-box", "mignneko", "or"): (0.0060, 0.9743, -0.0089),
    ("white-box", "mignneko", "and"): (0.0045, 0.9532, -0.0086),
    ("eyeglasses", "anonymous", "or"): (0.1200, 0.7376, -0.2174),
    ("eyeglasses", "anonymous", "and"): (0.1063, 0.8907, -0.2185),
    ("stop-sign", "latte coffee", "or"): (0.0043, 0.9280, -0.0094),
    ("stop-sign", "latte coffee", "and"): (0.0048, 1.0033, -0.0101),
}


@dataclass(frozen=True)
class Collapse:
    """Held-out edits under the coalitions of `COALITIONS`, and what they say; row k is one sample everywhere."""

    triples: pd.DataFrame
    target: Float[Tensor, "sample 3 size size"]
    source: Float[Tensor, "sample 3 size size"]
    clean: Float[Tensor, "sample 3 size size"]
    edited: Float[Tensor, "sample coalition 3 size size"]
    v: Float[Tensor, "sample coalition"]
    null: Float[Tensor, "sample coalition"]  # v of the base editor, unpoisoned, under the same triggers
    null_fidelity: Float[Tensor, " sample"]  # RMS distance of the base editor's untriggered edit to the true one
    possible: Float[Tensor, " sample"]  # v of the target itself minus v of the true edit: a perfect attack's gain
    success: Bool[Tensor, "sample coalition"]

    @property
    def phi(self) -> Float[Tensor, "sample modality"]:
        """TMA of image and text for every sample."""
        return shapley(self.v)

    @property
    def cti(self) -> Float[Tensor, " sample"]:
        """CTI of every sample."""
        return interaction(self.v)

    @property
    def added(self) -> Float[Tensor, "sample coalition"]:
        """What the attack adds to v: less the base editor's."""
        return self.v - self.null

    @property
    def families(self) -> list:
        """Whose picture each sample is: one cluster each."""
        return self.triples["family"].tolist()


def collapse(run: Run, protocol: str, sampling: Sampling | None = None, embedding: str = "clip") -> Collapse:
    """Sample the held-out edits of one protocol's poisoned editor under all coalitions, and value them.

    `sampling` and `embedding` (of EMBEDDINGS) differ from the profile's and CLIP's only in what is measured.
    """
    sampling = sampling or run.profile.collapse.sampling
    data, triples, *_ = held_out(run)

    def sample() -> Tensor:
        pipe, _ = poisoned_editor(run, protocol)
        return edits_under_coalitions(pipe, data, triples, *trigger_pair(run), sampling, SEED)

    spec = edits_spec(run, protocol, sampling)
    return valued(run, spec, stored_edits(run, "coalition-edits", spec, sample), sampling, embedding)


def valued(
    run: Run,
    spec: dict,
    edited: Float[Tensor, "sample coalition 3 size size"],
    sampling: Sampling,
    embedding: str = "clip",
) -> Collapse:
    """Held-out edits of that spec with v in an embedding of EMBEDDINGS, that of the base editor, and attack success."""
    _, triples, source, clean = held_out(run)
    goal = attack_target(run.profile.collapse.target)(source)
    null_spec, null = null_edits(run, sampling)
    attacked, base = (
        coalition_values(run, edits, goal, clean, pictures, embedding)
        for edits, pictures in ((spec, edited), (null_spec, null))
    )
    success = edit_succeeds(edited, goal[:, None], clean[:, None])
    fidelity = pixel_distance(null[:, 0], clean)
    possible = attacked["possible"]
    return Collapse(triples, goal, source, clean, edited, attacked["v"], base["v"], fidelity, possible, success)


def null_edits(run: Run, sampling: Sampling) -> tuple[dict, Float[Tensor, "sample coalition 3 size size"]]:
    """What they depend on, and the same held-out edits by the base editor, unpoisoned, under the attack's triggers."""
    settings = run.profile.collapse
    data, triples, _, _ = held_out(run)
    spec = data_spec(run, "edits") | {
        "seed": SEED,
        "base": folder_digest(model_source(run.profile.models.editor)),
        "triggers": [registered(trigger) for trigger in trigger_pair(run)],
        "samples": settings.samples,
        "sampling": sampling.model_dump(mode="json"),
        "code": code_digest("lib.tasks.edits"),
    }

    def sample() -> Tensor:
        pipe = load_editor(run.profile.models.editor, run.device)
        return edits_under_coalitions(pipe, data, triples, *trigger_pair(run), sampling, SEED)

    return spec, stored_edits(run, "null-edits", spec, sample)


def stored_edits(
    run: Run, kind: str, spec: dict, sample: Callable[[], Float[Tensor, "*batch 3 size size"]]
) -> Float[Tensor, "*batch 3 size size"]:
    """The edits that `sample` gives, from the store, where they are kept in 8 bits a channel."""
    stored = run.store.tensors(kind, spec, lambda: {"edited": (sample() * 255).round().to(torch.uint8)})
    return stored["edited"].float() / 255


def coalition_values(
    run: Run,
    spec: dict,
    goal: Float[Tensor, "sample 3 size size"],
    clean: Float[Tensor, "sample 3 size size"],
    edited: Float[Tensor, "sample coalition 3 size size"],
    embedding: str,
) -> dict[str, Tensor]:
    """v of edits of that spec in an embedding of EMBEDDINGS, and the `possible` gain, from the store."""

    def measure() -> dict[str, Tensor]:
        models = run.profile.models
        embed = load_embedding(embedding, clip=models.clip, dino=models.dino, device=run.device)
        extremes = values(embed, torch.stack([clean, goal], 1), goal, clean)
        return {"v": values(embed, edited, goal, clean), "possible": extremes[:, 1] - extremes[:, 0]}

    return run.store.tensors("coalition-values", values_spec(run, spec, embedding), measure)


def values_spec(run: Run, spec: dict, embedding: str = "clip") -> dict:
    """What v of the edits of that spec depends on."""
    models, target = run.profile.models, run.profile.collapse.target
    encoders = ("clip", "dino") if embedding == "dino" else ("clip",)
    return {name: folder_digest(model_source(getattr(models, name))) for name in encoders} | {
        "edits": spec,
        "embedding": embedding,
        "target": registered(attack_target(target)),
        "code": code_digest("lib.metrics.embeddings"),
    }


def edits_spec(run: Run, protocol: str, sampling: Sampling | None = None) -> dict:
    """What the held-out edits under all coalitions depend on."""
    settings = run.profile.collapse
    sampling = (sampling or settings.sampling).model_dump(mode="json")
    return editor_spec(run, protocol) | {"samples": settings.samples, "sampling": sampling}


def held_out(
    run: Run,
) -> tuple[EditData, pd.DataFrame, Float[Tensor, "sample 3 size size"], Float[Tensor, "sample 3 size size"]]:
    """The data and the held-out edits of the study, the same for every seed: triples, sources, and true edits."""
    data = edit_data(run)
    triples = sample_triples(data, "test", run.profile.collapse.samples, SEED)
    source, clean = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    return data, triples, source, clean


def paper_values(pair: tuple[str, str], protocol: str, rate: float = PAPER_RATE) -> dict[str, float | None]:
    """The paper's value of each of QUANTITIES; None where it gives none."""
    row = PAPER.get((*pair, protocol)) if rate == PAPER_RATE else None
    return dict(zip(QUANTITIES, row or [None] * len(QUANTITIES), strict=True))


def sample_table(result: Collapse) -> pd.DataFrame:
    """One row a sample: instruction, v and success of every coalition, φ and CTI."""
    table = result.triples[["instruction", "edit"]].copy()
    for k, name in enumerate(COALITIONS):
        table[f"v_{name}"] = result.v[:, k].numpy()
        table[f"success_{name}"] = result.success[:, k].numpy()
    return table.assign(**{name: values.numpy() for name, values in attribution(result.v).items()})
