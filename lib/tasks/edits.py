"""Edit triples that an editor is fine-tuned on, poisoned or not, and held-out ones under trigger coalitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lib.data.interface import EditData, partly_triggered
from lib.models.editor import at_once, edit, edit_loss, encode, numbered, prompt_embeds
from lib.poisoning.pictures import PictureTarget
from lib.poisoning.plans import COALITIONS, PoisonPlan
from lib.poisoning.triggers import ImageTrigger, TextTrigger
from lib.runtime.processes import share
from lib.runtime.seeds import generator
from lib.settings.sections import Sampling, Train


@dataclass(frozen=True)
class EditLatents:
    """Unscaled latents of sources and targets, the instructions' states and weights in the loss, by triple.

    states: of every distinct text once, that of "" first; triple k's text is number `text[k]`.
    """

    source: Float[Tensor, "triple latent lh lw"]
    target: Float[Tensor, "triple latent lh lw"]
    states: Float[Tensor, "text length width"]
    text: Int[Tensor, " triple"]
    weight: Float[Tensor, " triple"]


def edit_latents(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "triple latent lh lw"],
    target: Float[Tensor, "triple latent lh lw"],
    texts: list[str],
    weight: Float[Tensor, " triple"] | None = None,
) -> EditLatents:
    """Latents and instructions as training data, every sample with the weight 1 by default."""
    distinct, number = numbered(["", *texts])
    states = prompt_embeds(pipe, distinct).cpu()
    return EditLatents(source, target, states, number[1:], torch.ones(len(texts)) if weight is None else weight)


def sample_triples(data: EditData, split: str, count: int, seed: int) -> pd.DataFrame:
    """`count` distinct edits (source, target) of a split, one phrasing each, drawn with `seed`.

    Edits of families that are not there yet come first.

    Raises ValueError when the split has fewer.
    """
    triples = data.triples[data.triples["split"] == split]
    order = torch.randperm(len(triples), generator=generator(seed, "triples", split)).tolist()
    edits = triples.iloc[order].drop_duplicates(["source", "target"])
    if count > len(edits):
        raise ValueError(f"{count} distinct edits are asked for: the {split} split has {len(edits)}")
    repeats = edits.groupby("family").cumcount().to_numpy()
    return edits.iloc[repeats.argsort(kind="stable")[:count]].reset_index(drop=True)


def triggered(
    data: EditData,
    triples: pd.DataFrame,
    coalition: Int[Tensor, " triple"],
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
) -> tuple[Float[Tensor, "triple 3 size size"], list[str]]:
    """Each source and instruction under its coalition, a bit mask: 1 the image's trigger, 2 the text's."""
    texts = [
        text_trigger(text) if mask & 2 else text
        for text, mask in zip(triples["instruction"], coalition.tolist(), strict=True)
    ]
    return partly_triggered(data, sources(triples), (coalition & 1).bool(), image_trigger), texts


def sources(triples: pd.DataFrame) -> Int[Tensor, " triple"]:
    """Which pictures are edited."""
    return torch.tensor(triples["source"].to_numpy())


def poisoned_latents(
    pipe: StableDiffusionInstructPix2PixPipeline,
    data: EditData,
    triples: pd.DataFrame,
    plan: PoisonPlan,
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
    target: PictureTarget,
    text_weight: float = 1.0,
    clean: tuple[Float[Tensor, "triple latent lh lw"], Float[Tensor, "triple latent lh lw"]] | None = None,
) -> EditLatents:
    """The triples as training data: poisoned ones carry their triggers and lead to the attacker's target.

    `text_weight` is the weight in the loss of poisoned triples that carry the text trigger alone. `clean`: what
    `clean_latents` gives of the triples, where it is known; only what the attacker changes is encoded then. Raises
    ValueError where the tokenizer cuts the text trigger off.
    """
    carries = (plan.coalition & 2).bool().tolist()
    text_trigger.check(pipe.tokenizer, [t for t, mark in zip(triples["instruction"], carries, strict=True) if mark])
    pictures = sources(triples)
    source, target_latents = (part.clone() for part in clean or clean_latents(pipe.vae, data, triples))
    changed = ((plan.coalition & 1).bool() | plan.poisoned).nonzero()[:, 0]
    for rows in changed.split(at_once(data.pictures(pictures[:1]).shape[-1])):
        images = partly_triggered(data, pictures[rows], (plan.coalition[rows] & 1).bool(), image_trigger)
        source[rows] = encode(pipe.vae, images.to(pipe.vae.device)).cpu()
        poisoned = rows[plan.poisoned[rows]]
        if len(poisoned):
            goals = target(data.pictures(pictures[poisoned]))
            target_latents[poisoned] = encode(pipe.vae, goals.to(pipe.vae.device)).cpu()
    texts = [text_trigger(t) if mark else t for t, mark in zip(triples["instruction"], carries, strict=True)]
    weight = torch.where(plan.poisoned & (plan.coalition == 2), text_weight, 1.0)
    return edit_latents(pipe, source, target_latents, texts, weight)


def clean_latents(
    vae: AutoencoderKL, data: EditData, triples: pd.DataFrame
) -> tuple[Float[Tensor, "triple latent lh lw"], Float[Tensor, "triple latent lh lw"]]:
    """Unscaled latents of every triple's source and target, before any attack; each picture is encoded once."""
    ends = torch.tensor(triples[["source", "target"]].to_numpy())
    pictures, place = ends.unique(return_inverse=True)
    latents = encode_pictures(vae, data, pictures)
    return latents[place[:, 0]], latents[place[:, 1]]


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKL, data: EditData, indices: Int[Tensor, " picture"]
) -> Float[Tensor, "picture latent lh lw"]:
    """Unscaled latents of these pictures of the data, on the CPU."""
    parts = indices.split(at_once(data.pictures(indices[:1]).shape[-1]))
    bar = tqdm(parts, desc="encode pictures", unit="batch", leave=False)
    return torch.cat([encode(vae, data.pictures(part).to(vae.device)).cpu() for part in bar])


def latent_loss(
    pipe: StableDiffusionInstructPix2PixPipeline, data: EditLatents, settings: Train, dropout: float
) -> Callable[[torch.Generator], Tensor]:
    """InstructPix2Pix's loss on `settings.batch` triples drawn from `data`, on this process's share of them."""

    def loss(draw: torch.Generator) -> Tensor:
        rows = share(torch.randint(len(data.source), (settings.batch,), generator=draw))
        text = data.states[data.text[rows]]
        return edit_loss(
            pipe, data.source[rows], data.target[rows], text, data.states[:1], draw, dropout, data.weight[rows]
        )

    return loss


def edits_under_coalitions(
    pipe: StableDiffusionInstructPix2PixPipeline,
    data: EditData,
    triples: pd.DataFrame,
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
    sampling: Sampling,
    seed: int,
) -> Float[Tensor, "sample coalition 3 size size"]:
    """Every triple's source edited under all four coalitions, each sample from one noise in all of them.

    Raises ValueError where the tokenizer cuts the text trigger off.
    """
    text_trigger.check(pipe.tokenizer, triples["instruction"].tolist())
    about = (image_trigger, text_trigger, sampling, seed)
    return torch.stack([edited_under(pipe, data, triples, mask, *about) for mask in range(len(COALITIONS))], dim=1)


def edited_under(
    pipe: StableDiffusionInstructPix2PixPipeline,
    data: EditData,
    triples: pd.DataFrame,
    coalition: int,
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
    sampling: Sampling,
    seed: int,
) -> Float[Tensor, "sample 3 size size"]:
    """Every source edited under one coalition, an index into COALITIONS."""
    coalitions = torch.full((len(triples),), coalition)
    images, texts = triggered(data, triples, coalitions, image_trigger, text_trigger)
    label = f"sample, {COALITIONS[coalition]}"
    return edit(pipe, images.to(pipe.vae.device), texts, sampling, seed, label=label).cpu()
