"""The collapse study: a poisoned editor under all four coalitions, and which trigger carries the backdoor.

arXiv 2603.06508: v(S) = cos(z_S, z_tr) − cos(z_S, z_cl); TMA is v's Shapley value, CTI its interaction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import attribution as attribution_module
from lib import editing
from lib.attacks import data_spec
from lib.attacks.editor import editor_spec, poisoned_editor, trigger_pair
from lib.attribution import attribution, interaction, shapley
from lib.config import Run, model_source
from lib.data import edit_data
from lib.datasets import EditData
from lib.editing import attack_target, edits_under_coalitions, sample_triples
from lib.embedding import EMBEDDINGS, values
from lib.evaluation import edit_succeeds, mean_with_interval, pixel_distance, rate
from lib.models.editor import edit, load_editor
from lib.poisoning import COALITIONS
from lib.profile import Sampling
from lib.store import code_digest, folder_digest

QUANTITIES = ("phi_image", "phi_text", "cti")
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


def collapse(run: Run, protocol: str, sampling: Sampling | None = None, embedding: str = "clip") -> Collapse:
    """Sample the held-out edits of one protocol's poisoned editor under all coalitions, and value them.

    `sampling` and `embedding` (of EMBEDDINGS) differ from the profile's and CLIP's only in what is measured.
    """
    sampling = sampling or run.profile.collapse.sampling
    data, triples, source, clean = held_out(run)
    goal = attack_target(data, run.profile.collapse.target)(source)

    def sample() -> Tensor:
        pipe, _ = poisoned_editor(run, protocol)
        return edits_under_coalitions(pipe, data, triples, *trigger_pair(run), sampling, run.seed)

    spec = edits_spec(run, protocol, sampling)
    edited = stored_edits(run, "coalition-edits", spec, sample)
    return valued(run, spec, triples, goal, source, clean, edited, embedding)


def stored_edits(
    run: Run, kind: str, spec: dict, sample: Callable[[], Float[Tensor, "*batch 3 size size"]]
) -> Float[Tensor, "*batch 3 size size"]:
    """The edits that `sample` gives, from the store, where they are kept in 8 bits a channel."""
    made = run.store.tensors(kind, spec, lambda: {"edited": (sample() * 255).round().to(torch.uint8)})
    return made["edited"].float() / 255


def valued(
    run: Run,
    spec: dict,
    triples: pd.DataFrame,
    goal: Float[Tensor, "sample 3 size size"],
    source: Float[Tensor, "sample 3 size size"],
    clean: Float[Tensor, "sample 3 size size"],
    edited: Float[Tensor, "sample coalition 3 size size"],
    embedding: str,
) -> Collapse:
    """Edits of that spec with v in an embedding of EMBEDDINGS (from the store), and attack success."""

    def measure() -> dict[str, Tensor]:
        embed = EMBEDDINGS[embedding](run.profile.models, run.device)
        extremes = values(embed, torch.stack([clean, goal], 1), goal, clean)
        return {"v": values(embed, edited, goal, clean), "possible": extremes[:, 1] - extremes[:, 0]}

    about = {"edits": spec, "embedding": embedding, "code": code_digest(attribution_module)}
    if embedding == "dino":
        about["dino"] = folder_digest(model_source(run.profile.models.dino))
    made = run.store.tensors("coalition-values", about, measure)
    success = edit_succeeds(edited, goal[:, None], clean[:, None])
    return Collapse(triples, goal, source, clean, edited, made["v"], made["possible"], success)


def edits_spec(run: Run, protocol: str, sampling: Sampling | None = None) -> dict:
    """What the held-out edits under all coalitions depend on."""
    settings = run.profile.collapse
    sampling = (sampling or settings.sampling).model_dump(mode="json")
    return editor_spec(run, protocol) | {"samples": settings.samples, "sampling": sampling}


def base_edits(run: Run) -> Float[Tensor, "sample 3 size size"]:
    """The same held-out edits, untriggered, by the base editor."""
    sampling = run.profile.collapse.sampling
    _, triples, source, _ = held_out(run)
    base = folder_digest(model_source(run.profile.models.editor))
    spec = data_spec(run, "edits") | {"base": base, "samples": len(triples)}
    spec["sampling"] = sampling.model_dump(mode="json")

    def sample() -> Tensor:
        pipe = load_editor(run.profile.models.editor, run.device)
        texts = triples["instruction"].tolist()
        return edit(pipe, source.to(run.device), texts, sampling, run.seed, label="sample, base").cpu()

    spec["code"] = code_digest(editing, sys.modules[edit.__module__])
    return stored_edits(run, "base-edits", spec, sample)


def held_out(
    run: Run,
) -> tuple[EditData, pd.DataFrame, Float[Tensor, "sample 3 size size"], Float[Tensor, "sample 3 size size"]]:
    """The data and the held-out edits of the study: triples, sources, and true edits."""
    data = edit_data(run)
    triples = sample_triples(data, "test", run.profile.collapse.samples, run.seed)
    source, clean = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    return data, triples, source, clean


def attribution_table(result: Collapse, protocol: str, pair: tuple[str, str], seed: int) -> pd.DataFrame:
    """φ_I, φ_T and CTI as means over samples with 95 % bootstrap intervals, beside the paper's of that pair."""
    paper = paper_values(pair, protocol)
    return pd.DataFrame(
        {"protocol": protocol, "quantity": name} | mean_with_interval(values, seed) | {"paper": paper[name]}
        for name, values in attribution(result.v).items()
    )


def paper_values(pair: tuple[str, str], protocol: str, rate: float = PAPER_RATE) -> dict[str, float | None]:
    """The paper's value of each of QUANTITIES; None where it gives none."""
    known = PAPER.get((*pair, protocol)) if rate == PAPER_RATE else None
    return dict(zip(QUANTITIES, known or [None] * len(QUANTITIES), strict=True))


def coalition_table(result: Collapse, protocol: str, seed: int) -> pd.DataFrame:
    """ASR (Wilson intervals) and mean v (bootstrap intervals) of every coalition."""
    rows = []
    for k, name in enumerate(COALITIONS):
        about = {"protocol": protocol, "coalition": name}
        rows.append(about | {"metric": "ASR"} | rate(result.success[:, k]))
        rows.append(about | {"metric": "v"} | mean_with_interval(result.v[:, k], seed))
    return pd.DataFrame(rows)


def fidelity_table(
    edits: dict[str, Float[Tensor, "sample 3 size size"]], clean: Float[Tensor, "sample 3 size size"], seed: int
) -> pd.DataFrame:
    """RMS pixel distance of untriggered edits to the true edits, model by model, on the same samples."""
    return pd.DataFrame(
        {"model": name, "metric": "distance to the true edit"}
        | mean_with_interval(pixel_distance(edited, clean), seed)
        for name, edited in edits.items()
    )


def sample_table(result: Collapse, protocol: str) -> pd.DataFrame:
    """One row a sample: instruction, v and success of every coalition, φ and CTI."""
    table = result.triples[["instruction", "edit"]].assign(protocol=protocol)
    for k, name in enumerate(COALITIONS):
        table[f"v_{name}"] = result.v[:, k].numpy()
        table[f"success_{name}"] = result.success[:, k].numpy()
    return table.assign(**{name: values.numpy() for name, values in attribution(result.v).items()})
