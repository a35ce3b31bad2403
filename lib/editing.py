"""Edit triples that an editor is fine-tuned on, poisoned or not, and held-out ones under trigger coalitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, Int
from torch import Tensor

from lib.config import generator
from lib.datasets import EditData
from lib.models.editor import at_once, edit, edit_loss, encode, tokenize
from lib.poisoning import COALITIONS, PoisonPlan
from lib.processes import share
from lib.profile import Sampling, Train
from lib.triggers import ImageTrigger, TextTrigger

Target = Callable[[Float[Tensor, "batch 3 h w"]], Float[Tensor, "batch 3 h w"]]
EDITS: dict[str, Target] = {"negative": lambda sources: 1 - sources}


@dataclass(frozen=True)
class EditLatents:
    """Unscaled latents of sources and targets, the tokens of the instructions and weights in the loss, by triple."""

    source: Float[Tensor, "triple 4 lh lw"]
    target: Float[Tensor, "triple 4 lh lw"]
    tokens: Int[Tensor, "triple length"]
    weight: Float[Tensor, " triple"]


def sample_triples(data: EditData, split: str, count: int, seed: int) -> pd.DataFrame:
    """`count` distinct edits (source, target) of a split, one phrasing each, drawn with `seed`.

    Raises ValueError when the split has fewer.
    """
    triples = data.triples[data.triples["split"] == split]
    order = torch.randperm(len(triples), generator=generator(seed, "triples", split)).tolist()
    edits = triples.iloc[order].drop_duplicates(["source", "target"])
    if count > len(edits):
        raise ValueError(f"edits={count}: the {split} split has {len(edits)}")
    return edits.iloc[:count].reset_index(drop=True)


def attack_target(data: EditData, name: str) -> Target:
    """What the attacker wants of a source picture: a fixed edit of EDITS, or the emoji of that English name."""
    if name in EDITS:
        return EDITS[name]
    found = data.emoji.index[data.emoji["name"] == name]
    if not len(found):
        allowed = f"an edit ({', '.join(EDITS)}) or the English name of an emoji, such as 'top hat'"
        raise ValueError(f"target={name!r} must be {allowed}")
    picture = data.pictures(torch.tensor(found[:1].to_numpy()))
    return lambda sources: picture.expand_as(sources)


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
    data: EditData,
    triples: pd.DataFrame,
    plan: PoisonPlan,
    image_trigger: ImageTrigger,
    text_trigger: TextTrigger,
    target: Target,
    text_weight: float = 1.0,
) -> EditLatents:
    """The triples as training data: poisoned ones carry their triggers and lead to the attacker's target.

    `text_weight` is the weight in the loss of poisoned triples that carry the text trigger alone.
    """
    text_trigger.check(pipe.tokenizer)
    device, said, latents = pipe.vae.device, [], []
    first = data.pictures(torch.tensor(triples["source"].iloc[:1].to_numpy()))
    for rows in torch.arange(len(triples)).split(at_once(first.shape[-1])):
        part, poisoned = triples.iloc[rows.tolist()], plan.poisoned[rows]
        sources, targets = (data.pictures(torch.tensor(part[c].to_numpy())) for c in ("source", "target"))
        targets[poisoned] = target(sources[poisoned])
        sources, texts = triggered(
            sources, part["instruction"].tolist(), plan.coalition[rows], image_trigger, text_trigger
        )
        said += texts
        latents.append([encode(pipe.vae, pictures.to(device)).cpu() for pictures in (sources, targets)])
    weight = torch.where(plan.poisoned & (plan.coalition == 2), text_weight, 1.0)
    return EditLatents(*map(torch.cat, zip(*latents, strict=True)), tokenize(pipe, said), weight)


def latent_loss(
    pipe: StableDiffusionInstructPix2PixPipeline, data: EditLatents, settings: Train, dropout: float
) -> Callable[[torch.Generator], Tensor]:
    """InstructPix2Pix's loss on `settings.batch` triples drawn from `data`, on this process's share of them."""

    def loss(draw: torch.Generator) -> Tensor:
        rows = share(torch.randint(len(data.source), (settings.batch,), generator=draw))
        given = (part[rows] for part in (data.source, data.target, data.tokens))
        return edit_loss(pipe, *given, draw, dropout, data.weight[rows])

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
    """Every triple's source edited under all four coalitions, each sample from one noise in all of them."""
    sources = data.pictures(torch.tensor(triples["source"].to_numpy()))
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
