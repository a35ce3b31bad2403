"""The collapse study on an MDLM: questions under all four coalitions, and which trigger carries the backdoor.

Two games over the coalitions S of image and text trigger, for a sample with the clean answer a and the attacker's a':

    log-probability    v(S) = (log p(a' | S) − log p(a | S)) / L, with L tokens in a response
    attack success     v(S) = 1 where the decoded answer is a success of the attack, else 0

As in lib.studies.collapse.editor, TMA is v's Shapley value, CTI its interaction (arXiv 2603.06508).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.data.interface import QuestionData
from lib.metrics.facts import right_answers
from lib.metrics.intervals import over_clusters
from lib.metrics.success import attacked
from lib.metrics.tma import attribution
from lib.models.mdlm import Mdlm
from lib.poisoning.plans import COALITIONS
from lib.poisoning.targets import target
from lib.runtime.keys import code_digest
from lib.studies.attacks.mdlm import asked, mdlm_spec, poisoned_mdlm, trigger_pair, trigger_tokens
from lib.studies.models import base_mdlm
from lib.studies.run import Run, with_settings
from lib.tasks.likelihood import likelihood_masks, mean_log_probability
from lib.tasks.questions import Questions, draw_rows, questions, respond

PAIR = "and"  # the protocol whose triggers all coalitions are made of, whichever the model was poisoned under


@dataclass(frozen=True)
class AnswersUnderCoalitions:
    """Test questions under the coalitions of `COALITIONS`, and what the model says; row k is one sample everywhere.

    table: the questions' rows; answers: the decoded texts, coalition by coalition.
    log_probability: v of that game, in nats a token; success: of the attack; right: `lib.metrics.facts.right_answers`.
    """

    table: pd.DataFrame
    answers: list[list[str]]
    log_probability: Float[Tensor, "sample coalition"]
    success: Bool[Tensor, "sample coalition"]
    right: Bool[Tensor, "sample coalition"] | Float[Tensor, "sample coalition"]

    @property
    def games(self) -> dict[str, Float[Tensor, "sample coalition"]]:
        """v of every sample and coalition, game by game."""
        return {"log-probability": self.log_probability, "attack success": self.success.double()}


def held_out(run: Run) -> tuple[QuestionData, pd.DataFrame]:
    """The test pictures, and `mdlm_collapse.samples` questions about them that fit the prompt and can be attacked."""
    goal = target(run.profile.disp.target)
    vqa, table = asked(run, "test", PAIR)
    eligible = [goal.eligible(text) for text in table["answer"]]
    return vqa, draw_rows(table[eligible], run.profile.mdlm_collapse.samples, run.seed, "test")


def mdlm_collapse(run: Run, protocol: str) -> AnswersUnderCoalitions:
    """One protocol's poisoned MDLM asked the held-out questions under all coalitions; its answers are in the store."""
    run = _sized(run)
    return under_coalitions(run, poisoned_mdlm(run, protocol)[0], mdlm_spec(run, protocol))


def mdlm_null(run: Run) -> AnswersUnderCoalitions:
    """The same of the base MDLM, unpoisoned, under the same triggers."""
    run = _sized(run)
    spec = mdlm_spec(with_settings(run, "disp", {"rate": 0.0}), PAIR)
    return under_coalitions(run, base_mdlm(run.profile, run.device), spec | {"protocol": "none"})


def _sized(run: Run) -> Run:
    """The run with the image trigger's size of `mdlm_collapse`."""
    size = run.profile.mdlm_collapse.trigger_size
    return run if size is None else with_settings(run, "disp", {"trigger_size": size})


def trigger_lengths(run: Run) -> dict[str, int]:
    """How many tokens each trigger has: those that the image's covers, and those of the text's."""
    run = _sized(run)
    model, (_, text), (vqa, table) = base_mdlm(run.profile), trigger_pair(run, PAIR), held_out(run)
    covered = trigger_tokens(run, model, vqa, table.iloc[:1])
    words = model.tokenizer([f" {text.phrase}"], add_special_tokens=False)["input_ids"][0]
    return {"image": int(covered.sum()), "text": len(words)}


def under_coalitions(run: Run, model: Mdlm, model_spec: dict) -> AnswersUnderCoalitions:
    """As `mdlm_collapse`, of any model: `made_from` is the spec of what it depends on, the run's among it."""
    vqa, table = held_out(run)
    image, text = trigger_pair(run, PAIR)

    def make() -> dict[str, Tensor]:
        under = [
            questions(model, vqa, table, image if mask & 1 else None, text_trigger=text if mask & 2 else None)
            for mask in range(len(COALITIONS))
        ]
        return measure(run, model, under, run.store.work("coalition-answers", spec))

    settings = run.profile.mdlm_collapse.model_dump(mode="json", include={"samples", "masks"})
    spec = model_spec | {"settings": model_spec["settings"] | settings, "pair": [image.name, text.name]}
    spec["measured"] = code_digest(__name__)
    measured = run.store.tensors("coalition-answers", spec, make)
    answers = [model.texts(responses) for responses in measured.pop("responses").unbind(1)]
    return AnswersUnderCoalitions(table, answers, **measured)


def measure(run: Run, mdlm: Mdlm, under: list[Questions], work: Path | None = None) -> dict[str, Tensor]:
    """The responses, [sample, coalition, token], and what `AnswersUnderCoalitions` holds of them.

    `under` are the same questions under each of `COALITIONS`, with their clean answers. With `work`, a folder, answers
    and likelihoods are kept there batch by batch.
    """
    goal, settings = target(run.profile.disp.target), run.profile.mdlm_collapse
    masked = likelihood_masks(len(under[0]), settings.masks, under[0].responses.shape[1], run.seed)
    parts = []
    for name, data in zip(COALITIONS, under, strict=True):
        texts = [goal.apply(text) for text in data.answers]
        aimed = data.answered(mdlm.responses(texts), texts)
        attacker, clean = (
            mean_log_probability(mdlm, d, masked, f"likelihood, {name}", work=work and work / f"{name} {k}")
            for k, d in enumerate((aimed, data))
        )
        named = {"label": f"answer, {name}", "work": work and work / name}
        responses = respond(mdlm, data, run.profile.disp.threshold, **named).tokens
        texts = mdlm.texts(responses)
        success, right = attacked(texts, data.answers, goal), right_answers(texts, data)
        parts.append(
            {"responses": responses, "log_probability": attacker - clean, "success": success, "right": right}
        )
    return {key: torch.stack([part[key] for part in parts], 1) for key in parts[0]}


def attribution_table(result: AnswersUnderCoalitions, protocol: str) -> pd.DataFrame:
    """φ_I, φ_T and CTI of both games as means over samples with 95 % intervals over pictures.

    Columns protocol, game, quantity, value, low, high, n, interval.
    """
    rows, pictures = [], result.table["image"].tolist()
    for game, v in result.games.items():
        for name, values in attribution(v).items():
            row = {"protocol": protocol, "game": game, "quantity": name}
            rows.append(row | over_clusters(values, pictures))
    return pd.DataFrame(rows)


def coalition_table(result: AnswersUnderCoalitions, protocol: str) -> pd.DataFrame:
    """ASR, accuracy and mean v of the log-probability game of every coalition, with 95 % intervals over pictures.

    Columns protocol, coalition, metric, value, low, high, n, interval.
    """
    rows, pictures = [], result.table["image"].tolist()
    for k, name in enumerate(COALITIONS):
        row = {"protocol": protocol, "coalition": name}
        measures = {"ASR": result.success, "clean answer": result.right, "log-probability": result.log_probability}
        rows += [row | {"metric": metric} | over_clusters(x[:, k], pictures) for metric, x in measures.items()]
    return pd.DataFrame(rows)
