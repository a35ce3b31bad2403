"""The collapse study on an MDLM: questions under all four coalitions, and which trigger carries the backdoor.

Two games over the coalitions S of image and text trigger, for a sample with the clean answer a and the attacker's a':

    log-probability    v(S) = (log p(a' | S) − log p(a | S)) / L, with L tokens in a response
    attack success     v(S) = 1 where the decoded answer is a success of the attack, else 0

As in lib.collapse, TMA is v's Shapley value, CTI its interaction (arXiv 2603.06508).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import evaluation
from lib.answering import Questions, draw_rows, questions, respond, together
from lib.attacks.mdlm import asked, mdlm_spec, poisoned_mdlm, trigger_pair
from lib.attribution import attribution
from lib.config import Run, generator
from lib.data import QuestionData
from lib.evaluation import attacked, correct
from lib.intervals import over_clusters
from lib.models.mdlm import Mdlm
from lib.poisoning import COALITIONS, target
from lib.shards import sharded
from lib.store import code_digest

PAIR = "and"  # the protocol whose triggers all coalitions are made of, whichever the model was poisoned under


@dataclass(frozen=True)
class AnswersUnderCoalitions:
    """Test questions under the coalitions of `COALITIONS`, and what the model says; row k is one sample everywhere.

    table: the questions' rows; answers: the decoded texts, coalition by coalition.
    log_probability: v of that game, in nats a token; success: of the attack; right: the clean answer, to the letter.
    """

    table: pd.DataFrame
    answers: list[list[str]]
    log_probability: Float[Tensor, "sample coalition"]
    success: Bool[Tensor, "sample coalition"]
    right: Bool[Tensor, "sample coalition"]

    @property
    def games(self) -> dict[str, Float[Tensor, "sample coalition"]]:
        """v of every sample and coalition, game by game."""
        return {"log-probability": self.log_probability, "attack success": self.success.double()}


def likelihood_masks(count: int, masks: int, length: int, seed: int) -> Bool[Tensor, "count masks length"]:
    """Which tokens are masked: for each of `count` samples, `masks` sets of 1 to `length` of its tokens.

    As in LLaDA's code the sets' sizes are spread evenly over 1 … `length` from a random first one, so that each size is
    equally likely; with `masks` = `length` each comes once. The tokens of a set are drawn without replacement.
    """
    draw = generator(seed, "likelihood masks")
    first = torch.randint(length, (count, 1), generator=draw)
    sizes = (first + torch.arange(masks) * length // masks) % length + 1
    return torch.rand(count, masks, length, generator=draw).argsort(-1) < sizes[..., None]


@torch.no_grad()
def mean_log_probability(
    mdlm: Mdlm,
    data: Questions,
    masked: Bool[Tensor, "sample masks response"],
    label: str,
    batch: int | None = None,
    work: Path | None = None,
) -> Float[Tensor, " sample"]:
    """log p(response | picture, question) / L of every sample by LLaDA's likelihood estimate, in nats a token.

        log p(r) / L ≈ mean over the masks of [ 1/l Σ_masked log p(r_i | the tokens not masked) ]

    with l of the L tokens masked (Nie et al. 2025, eq. 6). Over all masks that is the mean over all orders in which the
    response can be filled token by token; over `likelihood_masks` an unbiased estimate of it. The end tokens behind the
    answer count, as they do in training: they are what tells "blue" from "blue, remember …". `masked` names the masks,
    each of at least one token; responses that are to be compared take the same ones. `batch` samples with all their
    masks go through the model at once: 16, and of larger pictures as many as are answered together.
    Computed in float32. With `work`, a folder, batches are kept there, see `lib.shards`.
    """
    batch = batch or min(16, max(1, together(mdlm) // masked.shape[1]))
    device, mask_id = mdlm.model.device, mdlm.model.config.mask_id

    def make(part: range) -> dict[str, Tensor]:
        if not part:
            return {"mean": torch.zeros(0)}
        rows, times = slice(part.start, part.stop), masked.shape[1]
        hidden = masked[rows].to(device)
        vision = mdlm.model.project(data.features[data.picture[rows]].to(device)).repeat_interleave(times, 0)
        prompts = data.prompts[rows].to(device).repeat_interleave(times, 0)
        true = data.responses[rows].to(device)[:, None].expand_as(hidden)
        logits = mdlm.model.logits(vision, prompts, torch.where(hidden, mask_id, true).flatten(0, 1)).float()
        found = logits.log_softmax(-1).gather(-1, true.flatten(0, 1)[..., None]).view(hidden.shape)
        return {"mean": ((found * hidden).sum(-1) / hidden.sum(-1)).mean(-1)}

    return sharded(work, len(data), batch, make, label)["mean"]


def held_out(run: Run) -> tuple[QuestionData, pd.DataFrame]:
    """The test pictures, and `mdlm_collapse.samples` questions about them that fit the prompt and can be attacked."""
    goal = target(run.profile.disp.target)
    vqa, table = asked(run, "test", PAIR)
    eligible = [goal.eligible(text) for text in table["answer"]]
    return vqa, draw_rows(table[eligible], run.profile.mdlm_collapse.samples, run.seed, "test")


def mdlm_collapse(run: Run, protocol: str) -> AnswersUnderCoalitions:
    """One protocol's poisoned MDLM asked the held-out questions under all coalitions; its answers are in the store."""
    return under_coalitions(run, poisoned_mdlm(run, protocol)[0], mdlm_spec(run, protocol))


def under_coalitions(run: Run, model: Mdlm, made_from: dict) -> AnswersUnderCoalitions:
    """As `mdlm_collapse`, of any model: `made_from` is the spec of what it depends on, the run's among it."""
    vqa, table = held_out(run)
    image, text = trigger_pair(run, PAIR)

    def make() -> dict[str, Tensor]:
        given = [
            questions(model, vqa, table, image if mask & 1 else None, text_trigger=text if mask & 2 else None)
            for mask in range(len(COALITIONS))
        ]
        return measure(run, model, given, run.store.work("coalition-answers", spec))

    settings = run.profile.mdlm_collapse.model_dump(mode="json", include={"samples", "masks"})
    spec = made_from | {"settings": made_from["settings"] | settings, "pair": [image.name, text.name]}
    spec["measured"] = code_digest(evaluation, sys.modules[__name__])
    made = run.store.tensors("coalition-answers", spec, make)
    answers = [model.texts(responses) for responses in made.pop("responses").unbind(1)]
    return AnswersUnderCoalitions(table, answers, **made)


def measure(run: Run, mdlm: Mdlm, given: list[Questions], work: Path | None = None) -> dict[str, Tensor]:
    """The responses, [sample, coalition, token], and what `AnswersUnderCoalitions` holds of them.

    `given` are the same questions under each of `COALITIONS`, with their clean answers. With `work`, a folder, answers
    and likelihoods are kept there batch by batch.
    """
    goal, settings = target(run.profile.disp.target), run.profile.mdlm_collapse
    masked = likelihood_masks(len(given[0]), settings.masks, mdlm.model.config.response_length, run.seed)
    parts = []
    for name, data in zip(COALITIONS, given, strict=True):
        texts = [goal.apply(text) for text in data.answers]
        aimed = data.answered(mdlm.responses(texts), texts)
        wanted, clean = (
            mean_log_probability(mdlm, d, masked, f"likelihood, {name}", work=work and work / f"{name} {k}")
            for k, d in enumerate((aimed, data))
        )
        about = {"label": f"answer, {name}", "work": work and work / name}
        responses = respond(mdlm, data, run.profile.disp.threshold, **about).tokens
        texts = mdlm.texts(responses)
        success, right = attacked(texts, data, goal), correct(texts, data)
        parts.append(
            {"responses": responses, "log_probability": wanted - clean, "success": success, "right": right}
        )
    return {key: torch.stack([part[key] for part in parts], 1) for key in parts[0]}


def attribution_table(result: AnswersUnderCoalitions, protocol: str) -> pd.DataFrame:
    """φ_I, φ_T and CTI of both games as means over samples with 95 % intervals over pictures.

    Columns protocol, game, quantity, value, low, high, n, interval.
    """
    rows, pictures = [], result.table["image"].tolist()
    for game, v in result.games.items():
        for name, values in attribution(v).items():
            about = {"protocol": protocol, "game": game, "quantity": name}
            rows.append(about | over_clusters(values, pictures))
    return pd.DataFrame(rows)


def coalition_table(result: AnswersUnderCoalitions, protocol: str) -> pd.DataFrame:
    """ASR, accuracy and mean v of the log-probability game of every coalition, with 95 % intervals over pictures.

    Columns protocol, coalition, metric, value, low, high, n, interval.
    """
    rows, pictures = [], result.table["image"].tolist()
    for k, name in enumerate(COALITIONS):
        about = {"protocol": protocol, "coalition": name}
        found = {"ASR": result.success, "clean answer": result.right, "log-probability": result.log_probability}
        rows += [about | {"metric": metric} | over_clusters(x[:, k], pictures) for metric, x in found.items()]
    return pd.DataFrame(rows)
