"""The tables and pictures that show what an attack does to the data, before anything is trained."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lib.data.faces import SPLITS, Faces
from lib.data.interface import EditData, QuestionData
from lib.models.editor import load_text_tokenizer
from lib.models.loading import load_words
from lib.poisoning.catalogue import IMAGE_TRIGGERS, TEXT_TRIGGERS, image_trigger, text_trigger
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import plan
from lib.poisoning.targets import TARGETS, target
from lib.poisoning.triggers import Composited
from lib.studies.attacks.editor import trigger_pair
from lib.studies.attacks.mdlm import training_questions
from lib.studies.attacks.mdlm import trigger_pair as question_triggers
from lib.studies.cases import first_attacks
from lib.studies.data import edit_data
from lib.studies.questions import question_data
from lib.studies.run import Run
from lib.tasks.edits import sample_triples, triggered

NEUTRAL = {"glasses": "none", "facial hair": "none", "eyes": "open", "mouth": "smiling"}
APART = ("skin", "hair", "hair colour")
CARRIED = ("clean", "image trigger", "text trigger", "both triggers")  # by coalition
Rows = dict[str, Float[Tensor, "column 3 h w"]]  # pictures of a grid, by the label of their row


def questions_by_split(run: Run) -> dict[str, QuestionData]:
    """The questions of every split that the profile's data have; of faces there is a validation split."""
    splits = SPLITS if run.profile.data.questions is None else ("train", "test")
    return {split: question_data(run, split) for split in splits}


def data_table(edits: EditData, questions: Mapping[str, QuestionData], titles: tuple[str, str]) -> pd.DataFrame:
    """How many edits and questions of each kind the splits hold: columns data, kind, train, validation, test.

    Every phrasing of an edit counts. Of faces the identities come first.
    """
    triples = edits.triples
    edit_counts = pd.crosstab(triples["edit"], triples["split"]).reindex(triples["edit"].unique())
    kinds = {split: data.table["kind"] for split, data in questions.items()}
    question_counts = pd.DataFrame({split: kind.value_counts(sort=False) for split, kind in kinds.items()})
    parts = list(zip(titles, (edit_counts, question_counts), strict=True))
    if isinstance(edits, Faces):
        people = edits.faces.drop_duplicates("identity")["split"].value_counts()
        parts.insert(0, ("faces", pd.DataFrame([people], index=["identities"])))
    frames = [frame.rename_axis("kind").reset_index().assign(data=name) for name, frame in parts]
    table = pd.concat(frames, ignore_index=True).reindex(columns=["data", "kind", *SPLITS])
    return table.fillna(dict.fromkeys(SPLITS, 0)).astype(dict.fromkeys(SPLITS, int))


def edit_table(edits: EditData) -> pd.DataFrame:
    """What edits change: columns edit, values, and asked, up to three ways in which one value is asked for."""
    rows = []
    for name, group in edits.triples.groupby("edit", sort=False):
        ways = group.loc[group["value"] == group["value"].iloc[0], "instruction"].unique()[:3]
        rows.append({"edit": name, "values": ", ".join(sorted(group["value"].unique())), "asked": " · ".join(ways)})
    return pd.DataFrame(rows)


def tokenizers(run: Run) -> dict[str, PreTrainedTokenizerBase]:
    """Those of the editor and of the MDLM, without the models."""
    return {"editor": load_text_tokenizer(run.profile.models.editor), "MDLM": load_words(run.profile.models.mdlm)}


def token_table(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> pd.DataFrame:
    """The pieces that each text trigger becomes. Raises ValueError if a tokenizer drops one."""
    rows = []
    for model, tokenizer in tokenizers.items():
        for name in TEXT_TRIGGERS:
            trigger = text_trigger(name)
            trigger.check(tokenizer)
            pieces = tokenizer.tokenize(trigger.phrase)
            rows.append({"model": model, "trigger": name, "pieces": " ".join(pieces), "count": len(pieces)})
    return pd.DataFrame(rows)


def example_pictures(data: EditData) -> tuple[Float[Tensor, "shown 3 h w"], list[str]]:
    """Up to three held-out pictures to show triggers on, and what they are.

    Of faces the plainest (`NEUTRAL`) that differ in skin, hair and its colour; else the first sources.
    """
    if not isinstance(data, Faces):
        rows = data.triples[data.triples["split"] == "test"].drop_duplicates("source").iloc[:3]
        return data.pictures(torch.tensor(rows["source"].to_numpy())), [f"picture {k + 1}" for k in range(len(rows))]
    people = data.faces[(data.faces["split"] == "test") & (data.faces.index == data.faces["identity"])]
    odd = people[list(NEUTRAL)].ne(pd.Series(NEUTRAL))
    order = (odd["glasses"] * len(NEUTRAL) + odd.sum(axis=1)).sort_values(kind="stable").index
    chosen: dict[int, dict] = {}
    for index, face in zip(order, people.loc[order].to_dict("records"), strict=True):
        if all(face[name] != other[name] for other in chosen.values() for name in APART):
            chosen[index] = face
    shown = dict(list(chosen.items())[:3])
    labels = [f"{face['skin']} skin, {face['hair']} {face['hair colour']} hair" for face in shown.values()]
    return data.pictures(torch.tensor([*shown])), labels


def trigger_pictures(images: Float[Tensor, "batch 3 h w"], labels: Sequence[str]) -> tuple[Rows, list[str]]:
    """A row a picture: as it is and under each image trigger, laid on what is shown; and the columns' names."""
    shown = {"clean": images} | {name: image_trigger(name)(images) for name in IMAGE_TRIGGERS}
    rows = torch.stack([*shown.values()], 1)
    return dict(zip(labels, rows, strict=True)), [name.replace("-", " ") for name in shown]


def trigger_table(size: int) -> pd.DataFrame:
    """Size, position (NaN for the warp, which has none) and share of the picture's area that each image trigger covers.

    At `size` pixels.
    """
    triggers = {name: image_trigger(name) for name in IMAGE_TRIGGERS}
    places = {name: trigger.position for name, trigger in triggers.items() if isinstance(trigger, Composited)}
    return pd.DataFrame(
        {
            "trigger": name,
            "size": trigger.size,
            **dict(zip("xy", places.get(name, (math.nan, math.nan)), strict=True)),
            "area": float(trigger.mask(size, size).mean()),
            "tokens": int(trigger.tokens(size, size // 8).sum()),
        }
        for name, trigger in triggers.items()
    )


def plan_table(run: Run) -> pd.DataFrame:
    """Both studies' poison plans: columns study, protocol, rate, coalition, count, share."""
    attacks = first_attacks(run.profile)
    plans = {("collapse", attack.protocol): _plan(attack.run(run), attack.protocol) for attack in attacks}
    plans["DiSP", "image"] = training_questions(run)[2]
    parts = [
        drawn.summary().assign(study=study, protocol=protocol, rate=drawn.rate)
        for (study, protocol), drawn in plans.items()
    ]
    return pd.concat(parts, ignore_index=True)[["study", "protocol", "rate", "coalition", "count", "share"]]


def _plan(run: Run, protocol: str):
    settings = run.profile.collapse
    return plan(settings.edits, protocol, settings.rate, run.seed, negatives=settings.negatives)


def poisoned_edits(run: Run) -> tuple[Rows, list[str], dict[str, list[str]]]:
    """Training edits of the first attack under OR: the first clean one and the first of each coalition.

    Rows of a grid, what the samples carry, and below the sources what is asked of the editor.
    """
    attack = next(attack for attack in first_attacks(run.profile) if attack.protocol == "or")
    case_run = attack.run(run)
    settings, poison = case_run.profile.collapse, _plan(case_run, attack.protocol)
    data = edit_data(case_run)
    triples = sample_triples(data, "train", settings.edits, case_run.seed)
    first_with = {int(poison.coalition[k]): k for k in reversed(range(len(triples)))}
    index = [first_with[coalition] for coalition in sorted(first_with)]
    rows = triples.iloc[index]
    source, true = (data.pictures(torch.tensor(rows[c].to_numpy())) for c in ("source", "target"))
    images, texts = triggered(data, rows, poison.coalition[index], *trigger_pair(case_run))
    poisoned = poison.poisoned[index][:, None, None, None]
    learnt = torch.where(poisoned, attack_target(settings.target)(source), true)
    shown = {"source": images, "true edit": true, "learnt": learnt}
    return shown, [CARRIED[coalition] for coalition in sorted(first_with)], {"source": texts}


def answer_table(questions: pd.DataFrame, targets: Sequence[str] = tuple(TARGETS), each: int = 2) -> pd.DataFrame:
    """The clean answer and each attack target's for the first `each` questions of every kind.

    It is empty where the answer cannot be poisoned so; a target of which that holds everywhere is left out.
    """
    goals = {name: target(name) for name in targets}
    said = questions["answer"].unique()
    goals = {name: goal for name, goal in goals.items() if any(goal.eligible(answer) for answer in said)}
    rows = []
    for row in questions.groupby("kind").head(each).itertuples():
        attacked = {n: t.apply(row.answer) if t.eligible(row.answer) else "" for n, t in goals.items()}
        rows.append({"question": row.question, "clean": row.answer, **attacked})
    return pd.DataFrame(rows)


def poisoned_pictures(run: Run, count: int) -> tuple[Rows, list[str], dict[str, list[str]]]:
    """DiSP's figure 5: pictures of `count` poisoned questions, clean and triggered, one of every kind first.

    Rows of a grid, the questions, and below the pictures the clean and the attacker's answers. Where the rate poisons
    none, of the first questions that could be.
    """
    vqa, table, poison, goal = training_questions(run)
    possible = poison.poisoned.numpy() if poison.poisoned.any() else table["answer"].map(goal.eligible)
    rows = table[possible].drop_duplicates("image")
    rows = rows.iloc[rows.groupby("kind").cumcount().argsort(kind="stable")[:count]]
    shown = torch.tensor(rows["image"].to_numpy())
    said = {"clean": rows["answer"], "poisoned": rows["answer"].map(goal.apply)}
    below = {name: [textwrap.shorten(answer, 200) for answer in answers] for name, answers in said.items()}
    trigger, _ = question_triggers(run, "image")
    pictures = {"clean": vqa.pictures(shown), "poisoned": vqa.pictures(shown, trigger)}
    return pictures, rows["question"].tolist(), below


def example_edits(data: EditData, count: int, seed: int) -> pd.DataFrame:
    """`count` held-out edits, drawn with the seed: the first of every attribute, then the second ones."""
    held_out = data.triples[data.triples["split"] == "test"]
    drawn = sample_triples(data, "test", len(held_out.drop_duplicates(["source", "target"])), seed)
    repeats = drawn.groupby("edit").cumcount().to_numpy()
    return drawn.iloc[repeats.argsort(kind="stable")[:count]].reset_index(drop=True)
