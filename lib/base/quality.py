"""What the base models can do on held-out data: the numbers of their cards and of the first table."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from lib.answering import answer, draw_rows, questions
from lib.datasets import EasyVqa, EditData, OpenMoji, QuestionData
from lib.datasets.easyvqa import blind_prior
from lib.datasets.openmoji import TONES
from lib.editing import sample_triples
from lib.evaluation import correct, mean_with_interval, pixel_distance, rate, tone_success
from lib.models.clip import Clip, retrieval
from lib.models.editor import decode, edit, encode
from lib.models.mdlm import Mdlm
from lib.profile import Sampling


@torch.no_grad()
def clip_quality(clip: Clip, data: EditData, people: int) -> pd.DataFrame:
    """Retrieval both ways and skin tones told from names, on held-out concepts: name, value, low, high, n.

    Retrieval runs over all tone-less emoji of the test split, one gallery. `tone_zero_shot` scores at most
    `people` held-out concepts in each of their six tones against the six names. Photographs have no names: of them
    it is whether each of at most `people` held-out edits is nearest to its own source (edit_to_source_recall_at_1).
    """
    if not isinstance(data, OpenMoji):
        rows = data.triples[data.triples["split"] == "test"].drop_duplicates("source").iloc[:people]
        pictures = (data.pictures(torch.tensor(rows[c].to_numpy())) for c in ("target", "source"))
        edits, sources = (clip.image_embeddings(part.to(clip.model.device)) for part in pictures)
        return pd.DataFrame([{"name": "edit_to_source_recall_at_1"} | rate(retrieval(edits, sources, 1))])
    openmoji = data
    emoji = openmoji.emoji
    held_out = torch.tensor((emoji["split"] == "test").to_numpy())
    plain = (held_out & torch.tensor((emoji["tone"] == 0).to_numpy())).nonzero()[:, 0]
    device = clip.model.device
    images = clip.image_embeddings(openmoji.pictures(plain).to(device))
    texts = clip.text_embeddings(emoji["name"].iloc[plain.tolist()].tolist())
    rows = []
    for k in (1, 5):
        rows.append({"name": f"image_to_text_recall_at_{k}"} | rate(retrieval(images, texts, k)))
        rows.append({"name": f"text_to_image_recall_at_{k}"} | rate(retrieval(texts, images, k)))
    tones = openmoji.tone_variants()[held_out]
    tones = tones[(tones >= 0).all(1)].unique(dim=0)[:people]
    images = clip.image_embeddings(openmoji.pictures(tones.flatten()).to(device)).view(*tones.shape, -1)
    texts = clip.text_embeddings(emoji["name"].iloc[tones.flatten().tolist()].tolist()).view(*tones.shape, -1)
    guess = torch.einsum("ctd,cud->ctu", images, texts).argmax(-1).cpu()
    rows.append({"name": "tone_zero_shot"} | rate((guess == torch.arange(len(TONES))).flatten()))
    return pd.DataFrame(rows)


@torch.no_grad()
def editor_quality(
    pipe: StableDiffusionInstructPix2PixPipeline,
    clip: Clip,
    data: EditData,
    sampling: Sampling,
    count: int,
    seed: int,
) -> pd.DataFrame:
    """On held-out tone edits: success by CLIP, and RMS pixel distances to the true edit.

    Photographs have no tones: of them it is the distances alone, over at most `count` held-out edits. Beside the
    edit's distance stand that of the unedited input and of the VAE's reconstruction of the true edit, the ceiling.
    Columns name, value, low, high, n.
    """
    toned = isinstance(data, OpenMoji)
    pool = replace(data, triples=data.triples[data.triples["edit"] == "tone"]) if toned else data
    held_out = pool.triples[pool.triples["split"] == "test"].drop_duplicates(["source", "target"])
    triples = sample_triples(pool, "test", count if toned else min(count, len(held_out)), seed)
    source, true = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    device = pipe.vae.device
    texts = triples["instruction"].tolist()
    edited = edit(pipe, source.to(device), texts, sampling, seed, "sample, held-out edits").cpu()
    restored = decode(pipe.vae, encode(pipe.vae, true.to(device))).cpu()
    rows = []
    if toned:
        rows.append({"name": "tone_success"} | rate(tone_success(clip, data, edited.to(clip.model.device), triples)))
    for name, pictures in (("edited", edited), ("unedited", source), ("vae_ceiling", restored)):
        rows.append({"name": f"distance_{name}"} | mean_with_interval(pixel_distance(pictures, true), seed))
    return pd.DataFrame(rows)


def mdlm_quality(model: Mdlm, train: QuestionData, test: QuestionData, count: int, threshold: float) -> pd.DataFrame:
    """Exact answers on `count` test questions, beside the labels right by the best answer that never looks.

    Columns name (accuracy_all, accuracy_what, accuracy_yes_no, and by kind), value, low, high, n, blind. Of other
    questions than easy-VQA's all and by kind alone, and no blind answers.
    """
    data = questions(model, test, draw_rows(test.table, count, 0, "test"))
    right = correct(answer(model, data, threshold, label="answer the test split"), data)
    kinds = data.table["kind"].to_numpy()
    if not isinstance(test, EasyVqa):
        masks = {"all": kinds == kinds} | {kind: kinds == kind for kind in sorted(set(kinds))}
        return pd.DataFrame({"name": f"accuracy_{name}"} | rate(right[mask]) for name, mask in masks.items())
    blind = blind_prior(train.table, data.table)
    chosen = {"all": kinds == kinds, "what": kinds != "yes/no", "yes_no": kinds == "yes/no"}
    chosen |= {kind: kinds == kind for kind in ("shape", "color")}
    rows = []
    for name, mask in chosen.items():
        rows.append({"name": f"accuracy_{name}"} | rate(right[mask]) | {"blind": blind[mask].mean()})
    return pd.DataFrame(rows)
