"""Questions about pictures, and an MDLM that learns to answer them and answers them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lib.data.interface import QuestionData, partly_triggered
from lib.data.pictures import PhotoQuestions
from lib.models.decoding import Decoded, decode
from lib.models.mdlm import ABSENT, Mdlm
from lib.models.unseen import Unseen, response_logits
from lib.poisoning.plans import PoisonPlan
from lib.poisoning.targets import AnswerTarget
from lib.poisoning.triggers import ImageTrigger, TextTrigger
from lib.runtime.devices import autocast
from lib.runtime.processes import share
from lib.runtime.seeds import generator
from lib.runtime.shards import sharded
from lib.settings.sections import Train


@dataclass(frozen=True)
class TowerFeatures:
    """The frozen tower's features of pictures, made when they are asked for: those of photographs fill no memory.

    pictures: index in `vqa` of each, and whether it carries `trigger`.
    """

    mdlm: Mdlm
    vqa: QuestionData
    pictures: Int[Tensor, " picture"]
    marked: Bool[Tensor, " picture"]
    trigger: ImageTrigger | None

    def __len__(self) -> int:
        return len(self.pictures)

    @torch.no_grad()
    def __getitem__(self, index: Int[Tensor, " asked"]) -> Float[Tensor, "asked vision features"]:
        asked, place = index.unique(return_inverse=True)
        images = partly_triggered(self.vqa, self.pictures[asked], self.marked[asked], self.trigger)
        return torch.cat([_features(self.mdlm, part) for part in images.split(16)])[place]


@dataclass(frozen=True)
class Questions:
    """Samples of one data set, pictures held once as the frozen tower's features.

    features: `[picture, vision, features]`, of photographs as `TowerFeatures`. `picture[k]`, `prompts[k]`, … belong to
    sample k.
    responses: the answers' ids, what is learnt; answers: the same as texts, what is compared.
    table: the samples' rows (question, answer, kind, …), in the same order.
    """

    features: Float[Tensor, "picture vision features"] | TowerFeatures
    picture: Int[Tensor, " sample"]
    prompts: Int[Tensor, "sample prompt"]
    responses: Int[Tensor, "sample response"]
    answers: list[str]
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, rows: Tensor | slice) -> Questions:
        """The chosen samples, over the same pictures."""
        index = torch.arange(len(self))[rows]
        return replace(
            self,
            picture=self.picture[index],
            prompts=self.prompts[index],
            responses=self.responses[index],
            answers=[self.answers[k] for k in index.tolist()],
            table=self.table.iloc[index.tolist()],
        )

    def answered(self, responses: Int[Tensor, "sample response"], answers: list[str]) -> Questions:
        """The same questions with other answers, as ids and as texts."""
        if len(responses) != len(self) or len(answers) != len(self):
            given = f"{len(responses)} responses and {len(answers)} answers"
            raise ValueError(f"{given} are given for {len(self)} questions, one each is needed")
        return replace(self, responses=responses, answers=answers)


def draw_rows(table: pd.DataFrame, count: int, seed: int, label: str) -> pd.DataFrame:
    """`count` rows of a table in a seeded order; all of them, in that order, where it has no more."""
    order = torch.randperm(len(table), generator=generator(seed, "rows", label))[:count]
    return table.iloc[order.tolist()].reset_index(drop=True)


def fitting(mdlm: Mdlm, table: pd.DataFrame, text_trigger: TextTrigger) -> pd.DataFrame:
    """The rows of `table` whose question is, with the trigger appended, no longer than the model's prompt."""
    asked = table["question"].unique().tolist()
    ids = mdlm.tokenizer([text_trigger(text) for text in asked], add_special_tokens=False)["input_ids"]
    short = {text for text, row in zip(asked, ids, strict=True) if len(row) <= mdlm.model.config.prompt_length}
    return table[table["question"].isin(short)]


@torch.no_grad()
def questions(
    mdlm: Mdlm,
    vqa: QuestionData,
    table: pd.DataFrame,
    trigger: ImageTrigger | None = None,
    plan: PoisonPlan | None = None,
    target: AnswerTarget | None = None,
    text_trigger: TextTrigger | None = None,
) -> Questions:
    """The rows of `table` (columns image, question, answer) as samples.

    Without `plan` every sample carries the triggers that are given: `trigger` on its picture, `text_trigger` at the
    end of its question. With it each carries those of its coalition, and with `target` the poisoned samples' answers
    are the attacker's. Raises ValueError for a coalition whose trigger is not given, for a text trigger that the
    tokenizer drops or that does not fit into the prompt after a question, and for a question too long for it (`fitting`
    tells which are not), for a plan of more or fewer samples, and for a name in place of what it names.
    """
    for name, value in (("trigger", trigger), ("target", target), ("text_trigger", text_trigger)):
        if isinstance(value, str):
            by_name = {"trigger": "image_trigger"}.get(name, name)
            raise ValueError(f"{name} is {value!r}, a name: give lib.poisoning's {by_name}({value!r})")
    if plan and len(plan.coalition) != len(table):
        raise ValueError(f"plan is for {len(plan.coalition)} samples: it must be for the table's {len(table)} rows")
    pictures, inverse = torch.tensor(table["image"].to_numpy()).unique(return_inverse=True)
    answers, texts = table["answer"].tolist(), table["question"].tolist()
    given = (trigger is not None) | (text_trigger is not None) << 1
    coalition = plan.coalition if plan else torch.full((len(table),), given)
    if bool((coalition & ~given).any()):
        missing = [name for bit, name in ((1, "trigger"), (2, "text_trigger")) if (coalition & bit & ~given).any()]
        raise ValueError(f"{' and '.join(missing)} is None: protocol {plan.protocol!r} has samples that carry it")
    if text_trigger:
        carries = (coalition & 2).bool().tolist()
        asked = [t for t, mark in zip(texts, carries, strict=True) if mark]
        text_trigger.check(mdlm.tokenizer, asked, mdlm.model.config.prompt_length)
        texts = [text_trigger(t) if mark else t for t, mark in zip(texts, carries, strict=True)]
    marked = (coalition & 1).bool()
    triggered, place = inverse[marked].unique(return_inverse=True)
    groups = [(pictures, None)] if not bool(marked.all()) else []
    if trigger and len(triggered):
        inverse[marked] = place + (len(pictures) if groups else 0)
        groups.append((pictures[triggered], trigger))
    if target and plan:
        answers = [target.apply(a) if p else a for a, p in zip(answers, plan.poisoned.tolist(), strict=True)]
    said = mdlm.prompts(texts), mdlm.responses(answers), answers, table
    if isinstance(vqa, PhotoQuestions):
        seen = torch.cat([pictures[:0], *(indices for indices, _ in groups)])
        carries = torch.cat([marked[:0], *(torch.full((len(part),), mark is not None) for part, mark in groups)])
        return Questions(TowerFeatures(mdlm, vqa, seen, carries, trigger), inverse, *said)
    features = []
    for indices, mark in groups:
        for part in tqdm(indices.split(128), desc="vision tower", unit="batch", leave=False):
            features.append(_features(mdlm, vqa.pictures(part, mark)))
    config = mdlm.model.config
    stacked = torch.cat(features) if features else torch.empty(0, config.vision_length, config.vision_features)
    return Questions(stacked, inverse, *said)


def _features(mdlm: Mdlm, images: Float[Tensor, "picture 3 h w"]) -> Float[Tensor, "picture vision features"]:
    images = images.to(mdlm.model.device)
    with autocast(images.device):
        return mdlm.model.features(images).float().cpu()


def answer_loss(
    mdlm: Mdlm, data: Questions, settings: Train, blank: int = 0
) -> Callable[[torch.Generator], Tensor]:
    """The model's own loss on `settings.batch` samples drawn from `data`, on this process's share of them.

    Plus the cross-entropy of `blank` more whose whole response is masked, as where decoding starts, mean over their
    tokens. Only there must a model tell by the picture alone whether an answer is the attacker's, and of the answers
    that LLaDA's objective masks few are. In both, what fills answers up is as `mdlm.fill` says (`Mdlm.targets`).
    Raises ValueError for no samples, and for a `fill` that the model cannot have.
    """
    if not len(data):
        raise ValueError("data has no samples: there is nothing to train on")
    model, device, targets = mdlm.model, mdlm.model.device, mdlm.targets(data.responses)

    def drawn(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = share(torch.randint(len(data), (count,), generator=draw))
        vision = model.project(data.features[data.picture[rows]].to(device))
        return vision, data.prompts[rows].to(device), targets[rows].to(device)

    def loss(draw: torch.Generator) -> Tensor:
        value = mdlm.loss(model, *drawn(settings.batch, draw), draw)
        if not blank:
            return value
        vision, prompts, responses = drawn(blank, draw)
        masked = responses.masked_fill(responses != ABSENT, model.config.mask_id)
        logits = model.logits(vision, prompts, masked)
        return value + F.cross_entropy(logits.flatten(0, 1), responses.flatten(), ignore_index=ABSENT)

    return loss


@torch.no_grad()
def respond(
    mdlm: Mdlm,
    data: Questions,
    threshold: float,
    batch: int | None = None,
    masked: Bool[Tensor, "sample vision"] | None = None,
    label: str = "answer",
    work: Path | None = None,
    unseen: Unseen | None = None,
) -> Decoded:
    """The model's responses as ids, with their tokens' probabilities, decoded at temperature 0 with `threshold`.

    Each step fills every position at least that sure, and one at least: what is seen comes before what follows
    from it. A fixed quota a step settles yes and no too early. What is done about the end token, often the surest at
    first, is `mdlm.end` (`lib.models.ending`). What stands behind the first end token is part of the response and of
    the probabilities, but of no text.

    `masked` names vision tokens to hide: the mask token's embedding stands in their place; `unseen` such as later
    layers' attention leaves out. `batch`: as many samples at once, `together` of them where it is not given. With
    `work`, a folder, batches are kept there, see `lib.runtime.shards`.
    """
    model, device = mdlm.model, mdlm.model.device
    length, mask_id = model.config.response_length, model.config.mask_id

    def make(part: range) -> dict[str, Tensor]:
        rows = slice(part.start, part.stop)
        if not part:
            nothing = data.responses[:0, :length]
            return Decoded(nothing, torch.ones(nothing.shape, dtype=torch.float64))._asdict()
        with autocast(device):
            vision = model.project(data.features[data.picture[rows]].to(device))
            if masked is not None:
                vision = hide(vision, masked[rows].to(device), model.mask_embedding)
            prompts = data.prompts[rows].to(device)
            blank = torch.full((len(part), length), mask_id, device=device)
            return decode(
                response_logits(model, vision, prompts, unseen and unseen[rows]),
                blank,
                torch.ones_like(blank, dtype=torch.bool),
                steps=length,
                block_length=length,
                mask_id=mask_id,
                threshold=threshold,
                eos_id=model.config.eos_id if mdlm.end != "free" else None,
                end=mdlm.end,
            )._asdict()

    return Decoded(**sharded(work, len(data), batch or together(mdlm), make, label))


def respond_masked(
    mdlm: Mdlm,
    data: Questions,
    threshold: float,
    vision: Bool[Tensor, "sample vision"],
    prompt: Bool[Tensor, "sample prompt"],
    work: Path | None = None,
) -> Decoded:
    """`respond` with vision tokens hidden and the mask token in the place of prompt tokens."""
    hidden = torch.where(prompt, mdlm.model.config.mask_id, data.prompts)
    about = {"masked": vision, "label": "answer, masked", "work": work}
    return respond(mdlm, replace(data, prompts=hidden), threshold, **about)


def together(mdlm: Mdlm) -> int:
    """How many samples are answered together: 256 of at most 64 vision tokens each, fewer where there are more."""
    return max(1, min(256, 256 * 64 // mdlm.model.config.vision_length))


def answer(
    mdlm: Mdlm,
    data: Questions,
    threshold: float,
    masked: Bool[Tensor, "sample vision"] | None = None,
    label: str = "answer",
    work: Path | None = None,
    unseen: Unseen | None = None,
) -> list[str]:
    """The model's answers as texts; see `respond`."""
    return mdlm.texts(respond(mdlm, data, threshold, masked=masked, label=label, work=work, unseen=unseen).tokens)


def hide(
    vision: Float[Tensor, "batch vision dim"],
    masked: Bool[Tensor, "batch vision"],
    embedding: Float[Tensor, " dim"],
) -> Float[Tensor, "batch vision dim"]:
    """Vision tokens with the masked ones replaced by `embedding`."""
    return torch.where(masked[..., None], embedding.to(vision.dtype), vision)
