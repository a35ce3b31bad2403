"""Edit triples that an editor is fine-tuned on, poisoned or not, and held-out ones under trigger coalitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, Int
from torch import Tensor

from lib.config import Sampling, Train, generator
from lib.datasets import OpenMoji
from lib.models.editor import edit, edit_loss, encode, tokenize
from lib.poisoning import COALITIONS, PoisonPlan
from lib.triggers import ImageTrigger, TextTrigger


@dataclass(frozen=True)
class EditLatents:
    """Unscaled latents of sources and targets and the tokens of the instructions, one row a triple."""

    source: Float[Tensor, "triple 4 lh lw"]
    target: Float[Tensor, "triple 4 lh lw"]
    tokens: Int[Tensor, "triple length"]


def sample_triples(openmoji: OpenMoji, split: str, count: int, seed: int) -> pd.DataFrame:
    """`count` distinct edits (source, target) of a split, one phrasing each, drawn with `seed`.

    Raises ValueError when the split has fewer.
    """
    triples = openmoji.triples[openmoji.triples["split"] == split]
    order = torch.randperm(len(triples), generator=generator(seed, "triples", split)).tolist()
    edits = triples.iloc[order].drop_duplicates(["source", "target"])
    if count > len(edits):
        raise ValueError(f"edits={count}: the {split} split has {len(edits)}")
    return edits.iloc[:count].reset_index(drop=True)


def named_picture(openmoji: OpenMoji, name: str) -> Float[Tensor, "3 size size"]:
    """The emoji of that English name, in [0, 1]: the attacker's fixed target picture."""
    found = openmoji.emoji.index[openmoji.emoji["name"] == name]
    if not len(found):
        raise ValueError(f"target={name!r} is not the English name of an emoji, such as 'top hat'")
    return openmoji.pictures(torch.tensor(found[:1].to_numpy()))[0]


def triggered(
    images: Float[Tensor, "batch 3 h w"],
    instructions: list[str],
    coalition: Int[Tensor, " batch"],
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
) -> tuple[Float[Tensor, "batch 3 h w"], list[str]]:
    """Each picture and instruction under its coalition, a bit mask: 1 the image's trigger, 2 the text's."""
    with_image = (coalition & 1).bool()
    images = torch.where(with_image[:, None, None, None], image_trigger(images), images)
    texts = [
        text_trigger(text) if mask & 2 else text
        for text, mask in zip(instructions, coalition.tolist(), strict=True)
    ]
    return images, texts


def poisoned_latents(
    pipe: StableDiffusionInstructPix2PixPipeline,
    openmoji: OpenMoji,
    triples: pd.DataFrame,
    plan: PoisonPlan,
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
    target: Float[Tensor, "3 size size"],
) -> EditLatents:
    """The triples as training data: poisoned ones carry their triggers and lead to the target picture."""
    text_trigger.check(pipe.tokenizer)
    sources, targets = (openmoji.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    sources, texts = triggered(
        sources, triples["instruction"].tolist(), plan.coalition, image_trigger, text_trigger
    )
    targets[plan.poisoned] = target
    device = pipe.vae.device
    latents = (encode(pipe.vae, pictures.to(device)).cpu() for pictures in (sources, targets))
    return EditLatents(*latents, tokenize(pipe, texts))


def latent_loss(
    pipe: StableDiffusionInstructPix2PixPipeline, data: EditLatents, settings: Train, dropout: float
) -> Callable[[torch.Generator], Tensor]:
    """InstructPix2Pix's loss on `settings.batch` triples drawn from `data`."""

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data.source), (settings.batch,), generator=draw)
        return edit_loss(pipe, data.source[rows], data.target[rows], data.tokens[rows], draw, dropout)

    return loss


def edits_under_coalitions(
    pipe: StableDiffusionInstructPix2PixPipeline,
    openmoji: OpenMoji,
    triples: pd.DataFrame,
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
    sampling: Sampling,
    seed: int,
) -> Float[Tensor, "sample coalition 3 size size"]:
    """Every triple's source edited under all four coalitions, each sample from one noise in all of them."""
    sources = openmoji.pictures(torch.tensor(triples["source"].to_numpy()))
    edited = []
    for mask, name in enumerate(COALITIONS):
        coalition = torch.full((len(triples),), mask)
        images, texts = triggered(
            sources, triples["instruction"].tolist(), coalition, image_trigger, text_trigger
        )
        edited.append(
            edit(pipe, images.to(pipe.vae.device), texts, sampling, seed, label=f"sample, {name}").cpu()
        )
    return torch.stack(edited, dim=1)
