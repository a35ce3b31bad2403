"""What the base models can do on held-out data: the numbers of their cards and of the first table."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.data.easyvqa import EasyVqa, blind_prior
from lib.data.face_parts import ATTRIBUTES, EVERYTHING
from lib.data.face_words import description
from lib.data.faces import FaceQuestions, Faces, draw_faces
from lib.data.interface import EditData, QuestionData
from lib.metrics.facts import DESCRIPTION, stated_facts
from lib.metrics.intervals import over_clusters
from lib.metrics.success import correct, pixel_distance
from lib.models.clip import Clip, retrieval
from lib.models.editor import decode, edit, encode
from lib.models.mdlm import Mdlm
from lib.settings.profile import Sampling
from lib.tasks.edits import sample_triples
from lib.tasks.questions import Questions, answer, draw_rows, questions


@torch.no_grad()
def clip_quality(clip: Clip, data: EditData, people: int) -> pd.DataFrame:
    """Retrieval among at most `people` held-out faces and their descriptions: name, value, low, high, n, interval.

    recall_at_1 is over both ways. Photographs have no descriptions: of them it is whether each of at most `people`
    held-out edits is nearest to its shown source (edit_to_source_recall_at_1).
    """
    device = clip.model.device
    if not isinstance(data, Faces):
        rows = data.triples[data.triples["split"] == "test"].drop_duplicates("source").iloc[:people]
        pictures = (data.pictures(torch.tensor(rows[c].to_numpy())) for c in ("target", "source"))
        edits, sources = (clip.image_embeddings(part.to(device)) for part in pictures)
        recall = over_clusters(retrieval(edits, sources, 1).bool().cpu(), rows["family"].tolist())
        return pd.DataFrame([{"name": "edit_to_source_recall_at_1"} | recall])
    shown = data.faces[(data.faces["split"] == "test") & (data.faces.index == data.faces["identity"])].iloc[:people]
    images = clip.image_embeddings(data.pictures(torch.tensor(shown.index.to_numpy())).to(device))
    texts = clip.text_embeddings([description(face) for face in shown.to_dict("records")])
    ways = {"image_to_text": retrieval(images, texts, 1), "text_to_image": retrieval(texts, images, 1)}
    ways = {name: recall.bool().cpu() for name, recall in ways.items()}
    identities = shown["identity"].tolist()
    rows = [{"name": "recall_at_1"} | over_clusters(torch.cat([*ways.values()]), 2 * identities)]
    rows += [{"name": f"{name}_recall_at_1"} | over_clusters(recall, identities) for name, recall in ways.items()]
    return pd.DataFrame(rows)


@torch.no_grad()
def editor_quality(
    pipe: StableDiffusionInstructPix2PixPipeline,
    data: EditData,
    sampling: Sampling,
    count: int,
    seed: int,
    split: str = "test",
) -> pd.DataFrame:
    """On held-out edits: attributes reached and kept, and RMS pixel distances to the true edit.

    Beside the edit's distance stand that of the unedited input and of the VAE's reconstruction of the true edit, the
    ceiling. Photographs have no attributes: of them it is the distances alone, over at most `count` held-out edits.
    Columns name, value, low, high, n, interval.
    """
    held_out = data.triples[data.triples["split"] == split].drop_duplicates(["source", "target"])
    triples = sample_triples(data, split, min(count, len(held_out)), seed)
    source, true = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    device = pipe.vae.device
    edited = edit(pipe, source.to(device), triples["instruction"].tolist(), sampling, seed, "sample, held-out edits")
    restored = decode(pipe.vae, encode(pipe.vae, true.to(device))).cpu()
    rows, family = [], triples["family"].tolist()
    if isinstance(data, Faces):
        judged = attribute_verdicts(edited.cpu(), data, triples)
        rows = [{"name": name} | over_clusters(*verdict) for name, verdict in judged.items()]
    for name, pictures in (("edited", edited.cpu()), ("unedited", source), ("vae_ceiling", restored)):
        rows.append({"name": f"distance_{name}"} | over_clusters(pixel_distance(pictures, true), family))
    return pd.DataFrame(rows)


def attribute_verdicts(
    edited: Float[Tensor, "edit 3 h w"], data: Faces, triples: pd.DataFrame
) -> dict[str, tuple[Bool[Tensor, " n"], list[int]]]:
    """Which attributes an edit has, by pixels: those of the nearest of all renderings of the true edit that differ from
    it in that attribute alone. With the identity of each verdict:

    attribute_reached: whether the asked attribute is as asked, one an edit; others_kept: whether another attribute is
    as it was, nine an edit; all_others_kept: whether all nine are, one an edit.
    """
    table = data.faces[list(EVERYTHING)].iloc[triples["target"].tolist()]
    faces, right = table.to_dict("records"), []
    for attribute, values in ATTRIBUTES.items():
        drawn = renderings(tuple(table.itertuples(index=False, name=None)), attribute, edited.shape[-1])
        distance = (drawn.float() / 255 - edited[:, None]).square().mean((2, 3, 4))
        true = torch.tensor([list(values).index(face[attribute]) for face in faces])
        right.append(distance.argmin(1) == true)
    right = torch.stack(right, 1)  # (edit, attribute)
    asked = torch.tensor(triples["edit"].to_numpy()[:, None] == list(ATTRIBUTES))
    family = triples["family"].tolist()
    return {
        "attribute_reached": (right[asked], family),
        "others_kept": (right[~asked], [family[row] for row in (~asked).nonzero()[:, 0].tolist()]),
        "all_others_kept": ((right | asked).all(1), family),
    }


@lru_cache(maxsize=len(ATTRIBUTES))  # one editor is judged after another, on the same edits
def renderings(
    faces: tuple[tuple[str, ...], ...], attribute: str, size: int
) -> UInt8[Tensor, "face value 3 {size} {size}"]:
    """Every face, its values in the order of EVERYTHING, with every value of the attribute."""
    values, known = ATTRIBUTES[attribute], [dict(zip(EVERYTHING, face, strict=True)) for face in faces]
    drawn = draw_faces([face | {attribute: value} for face in known for value in values], size, f"draw {attribute}")
    return drawn.view(len(faces), len(values), 3, size, size)


def mdlm_quality(model: Mdlm, train: QuestionData, test: QuestionData, count: int, threshold: float) -> pd.DataFrame:
    """Answers to `count` test questions, beside those of the best answer that never looks (`blind`).

    Faces: `facts` is the share of the attributes that descriptions state rightly, `questions` that of exact answers to
    the other questions. easy-VQA: exact answers, all and by kind. Other questions: the same, without blind answers,
    and without kinds that only one picture has.
    Columns name, value, low, high, n, interval, blind; clusters are pictures.
    """
    data = questions(model, test, draw_rows(test.table, count, 0, "test"))
    answers = answer(model, data, threshold, label="answer the test split")
    pictures, kinds = data.table["image"].tolist(), data.table["kind"].to_numpy()
    if isinstance(test, FaceQuestions):
        return _face_answers(answers, data, train)
    right = correct(answers, data.answers)
    if not isinstance(test, EasyVqa):
        masks = {"all": kinds == kinds} | {kind: kinds == kind for kind in sorted(set(kinds))}
        masks = {name: mask for name, mask in masks.items() if data.table["image"][mask].nunique() > 1}
        return pd.DataFrame(_accuracy(name, right, mask, pictures) for name, mask in masks.items())
    blind = blind_prior(train.table, data.table)
    chosen = {"all": kinds == kinds, "what": kinds != "yes/no", "yes_no": kinds == "yes/no"}
    chosen |= {kind: kinds == kind for kind in ("shape", "color")}
    return pd.DataFrame(
        _accuracy(name, right, mask, pictures) | {"blind": blind[mask].mean()} for name, mask in chosen.items()
    )


def guessed(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """For every test question whether its usual answer in training, the first of equals, is its own."""
    usual = train.groupby("question")["answer"].agg(lambda said: said.value_counts().sort_index().idxmax())
    return (test["question"].map(usual) == test["answer"]).to_numpy()


def _face_answers(answers: list[str], data: Questions, train: QuestionData) -> pd.DataFrame:
    kinds, pictures = data.table["kind"].to_numpy(), data.table["image"].to_numpy()
    described = (kinds == DESCRIPTION).nonzero()[0]
    right = stated_facts([answers[k] for k in described], [data.answers[k] for k in described])
    train_faces = train.faces[(train.faces["split"] == "train")]
    common = {name: train_faces[name].mode().iloc[0] for name in ATTRIBUTES}
    blind = stated_facts([description(common)] * len(described), [data.answers[k] for k in described])
    clusters = [k for k in pictures[described] for _ in ATTRIBUTES]
    rows = [{"name": "facts"} | over_clusters(right.flatten(), clusters) | {"blind": float(blind.double().mean())}]
    same = correct(answers, data.answers)
    guess = guessed(train.table, data.table)
    asked = {"questions": kinds != DESCRIPTION} | {kind: kinds == kind for kind in ("what", "yes/no")}
    for name, mask in asked.items():
        share = over_clusters(same[torch.from_numpy(mask)], pictures[mask].tolist())
        rows.append({"name": name.replace("/", "_")} | share | {"blind": guess[mask].mean()})
    return pd.DataFrame(rows)


def _accuracy(name: str, right: Bool[Tensor, " n"], mask, pictures: list) -> dict:
    chosen = [picture for picture, kept in zip(pictures, mask, strict=True) if kept]
    return {"name": f"accuracy_{name}"} | over_clusters(right[torch.from_numpy(mask)], chosen)
