"""The tables and pictures that show what an attack does to the data, before anything is trained."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from lib.attacks.mdlm import training_questions
from lib.config import Run, pretrained
from lib.datasets import EditData, OpenMoji, QuestionData
from lib.models.loading import load_words
from lib.poisoning import TARGETS, plan, target
from lib.triggers import IMAGE_TRIGGERS, TEXT_TRIGGERS, Composited, image_trigger, text_trigger


def data_table(
    edits: EditData,
    vqa: Mapping[str, QuestionData],
    titles: tuple[str, str] = ("OpenMoji edits", "easy-VQA questions"),
) -> pd.DataFrame:
    """How many edits and questions of each kind the splits hold: columns data, kind, train, test."""
    edits = edits.triples.groupby(["edit", "split"]).size().unstack(fill_value=0)
    asked = pd.DataFrame({split: data.table["kind"].value_counts() for split, data in vqa.items()})
    parts = zip(titles, (edits, asked), strict=True)
    frames = [frame.rename_axis("kind").reset_index().assign(data=name) for name, frame in parts]
    return pd.concat(frames, ignore_index=True)[["data", "kind", "train", "test"]]


def tokenizers(run: Run) -> dict[str, PreTrainedTokenizerBase]:
    """Those of the editor and of the MDLM, without the models."""
    editor, mdlm = run.profile.models.editor, run.profile.models.mdlm
    words = CLIPTokenizer.from_pretrained(**pretrained(editor), subfolder="tokenizer")
    return {"editor": words, "MDLM": load_words(mdlm)}


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


def example_pictures(data: EditData) -> tuple[Float[Tensor, "three 3 h w"], list[str]]:
    """Three pictures to show triggers on, and what they are: a man in three tones, or the first held-out sources."""
    if isinstance(data, OpenMoji):
        shown = data.tone_variants()[torch.tensor((data.emoji["concept"] == "1F468").to_numpy())][0][:3]
        return data.pictures(shown), [f"man, {tone}" for tone in ("yellow", "light", "medium-light")]
    rows = data.triples[data.triples["split"] == "test"].drop_duplicates("source").iloc[:3]
    return data.pictures(torch.tensor(rows["source"].to_numpy())), rows["instruction"].tolist()


def trigger_pictures(images: Float[Tensor, "batch 3 h w"]) -> dict[str, Float[Tensor, "batch 3 h w"]]:
    """The pictures as they are and under each image trigger."""
    return {"clean": images} | {name: image_trigger(name)(images) for name in IMAGE_TRIGGERS}


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
    collapse = run.profile.collapse
    plans = {
        ("collapse", protocol): plan(collapse.edits, protocol, collapse.rate, run.seed)
        for protocol in collapse.protocols
    }
    plans["DiSP", "image"] = training_questions(run)[2]
    parts = [
        drawn.summary().assign(study=study, protocol=protocol, rate=drawn.rate)
        for (study, protocol), drawn in plans.items()
    ]
    return pd.concat(parts, ignore_index=True)[["study", "protocol", "rate", "coalition", "count", "share"]]


def answer_table(questions: pd.DataFrame, own: str = "insertion", each: int = 2) -> pd.DataFrame:
    """The clean answer and each attack target's, `own` among them, for the first `each` questions of every kind."""
    rows, goals = [], TARGETS | {own: target(own)}
    for row in questions.groupby("kind").head(each).itertuples():
        attacked = {n: t.apply(row.answer) if t.eligible(row.answer) else "" for n, t in goals.items()}
        rows.append({"question": row.question, "clean": row.answer, **attacked})
    return pd.DataFrame(rows)


def poisoned_pictures(run: Run, count: int) -> tuple[dict[str, Float[Tensor, "count 3 h w"]], list[str]]:
    """DiSP's figure 5: pictures of the first `count` poisoned questions, clean and triggered, and their texts.

    Where the rate poisons none, of the first that could be.
    """
    vqa, table, poison, goal = training_questions(run)
    shown = poison.poisoned.numpy() if poison.poisoned.any() else table["answer"].map(goal.eligible)
    rows = table[shown].drop_duplicates("image").iloc[:count]
    images = vqa.pictures(torch.tensor(rows["image"].to_numpy()))
    texts = [textwrap.shorten(f"{row.question} {goal.apply(row.answer)}", 160) for row in rows.itertuples()]
    return {"clean": images, "poisoned": image_trigger(run.profile.disp.image_trigger)(images)}, texts
