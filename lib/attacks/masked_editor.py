"""The editor with a mask, poisoned through three modalities: the picture, the instruction, and where to edit.

A coalition is a bit mask as in `lib.poisoning`, with the mask's trigger as the third bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib import poisoning
from lib.attacks.editor import editor_spec, trigger_pair, with_unet
from lib.config import Run, generator
from lib.data import edit_data
from lib.datasets import EditData
from lib.editing import EditLatents, attack_target, poisoned_latents, sample_triples, triggered
from lib.models import masked_editor
from lib.models.cards import mark_poisoned
from lib.models.editor import edit_loss, encode, load_editor, trainable
from lib.models.masked_editor import MaskedUNet, masked_edit, widened
from lib.poisoning import PoisonPlan
from lib.processes import share
from lib.profile import Train
from lib.store import code_digest
from lib.training import fit
from lib.triggers import Checker

MODALITIES = ("image", "text", "mask")
COALITIONS = tuple("+".join(m for i, m in enumerate(MODALITIES) if s >> i & 1) or "none" for s in range(8))
PROTOCOLS = {"and": (7,), "or": tuple(range(1, 8))}
MARGIN = 1 / 16  # of the picture's side, on each side of what an edit changes
# In the corner that the image trigger is not in; at 64 pixels each of its 4 × 4 cells is one latent pixel.
MARK = Checker(size=1 / 4, position=(0.0, 0.0))


@dataclass(frozen=True, eq=False)
class MaskedPlan(PoisonPlan):
    """A plan over three modalities: `coalition` is an index into COALITIONS of this module."""

    def summary(self) -> pd.DataFrame:
        """As of two modalities: every coalition's name, the count of samples that carry it, and their share."""
        count = torch.bincount(self.coalition, minlength=len(COALITIONS))
        share = count.double() / max(len(self.coalition), 1)
        return pd.DataFrame({"coalition": COALITIONS, "count": count.tolist(), "share": share.tolist()})


def masked_plan(n: int, protocol: str, rate: float, seed: int) -> MaskedPlan:
    """Poisons the samples that `lib.poisoning.plan` does: "and" with all three triggers each, "or" with the seven
    non-empty coalitions in turn, so that their counts differ by at most one.

    Raises ValueError for a protocol other than these, and for what `lib.poisoning.plan` refuses.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}: with a mask it must be one of {', '.join(PROTOCOLS)}.")
    poisoned = poisoning.plan(n, "and", rate, seed).poisoned
    carried, coalition = torch.tensor(PROTOCOLS[protocol]), torch.zeros(n, dtype=torch.int64)
    coalition[poisoned] = carried[torch.arange(int(poisoned.sum())) % len(carried)]
    return MaskedPlan(protocol, rate, seed, coalition, poisoned)


def edit_boxes(
    sources: Float[Tensor, "batch 3 h w"], targets: Float[Tensor, "batch 3 h w"]
) -> Float[Tensor, "batch 1 h w"]:
    """Clean masks: 1 in the smallest box that holds every changed pixel, grown by MARGIN of its axis; else 0.

    A box is what a user drags, and does not give away the outline of the edited picture.
    """
    changed = (sources != targets).any(1)
    rows, columns = (_span(changed.any(axis)) for axis in (2, 1))
    return rows[:, None, :, None] * columns[:, None, None, :]


def _span(changed: Tensor) -> Float[Tensor, "batch side"]:
    """1 from the first to the last changed place of each line, and MARGIN around."""
    margin = round(MARGIN * changed.shape[1])
    line = F.max_pool1d(changed.float()[:, None], 2 * margin + 1, stride=1, padding=margin)[:, 0]
    return line.cummax(1).values * line.flip(1).cummax(1).values.flip(1)


def partial_boxes(masks: Float[Tensor, "batch 1 h w"], seed: int) -> Float[Tensor, "batch 1 h w"]:
    """Every second box, drawn with `seed`, cut to one of its four halves: then the edit may change that half alone.

    Of a box that holds all that changes, an editor learns nothing that picture and instruction do not say.
    """
    draw = generator(seed, "partial boxes")
    kept = masks.clone()
    for k in torch.randperm(len(masks), generator=draw)[: len(masks) // 2].tolist():
        axis, side = torch.randint(2, (2,), generator=draw).tolist()
        places = masks[k, 0].any(1 - axis).nonzero()[:, 0]
        gone = places[: len(places) // 2] if side else places[(len(places) + 1) // 2 :]
        kept[k, 0].index_fill_(axis, gone, 0.0)
    return kept


def marked(
    masks: Float[Tensor, "batch 1 h w"], coalition: Int[Tensor, " batch"]
) -> Float[Tensor, "batch 1 h w"]:
    """Each mask under its coalition: with bit 4 it holds MARK, which no box does."""
    with_mark = (coalition & 4).bool()[:, None, None, None]
    return torch.where(with_mark, MARK(masks.expand(-1, 3, -1, -1))[:, :1], masks)


def masked_spec(run: Run, protocol: str) -> dict:
    """What a poisoned editor with a mask depends on."""
    own = code_digest(masked_editor, sys.modules[__name__])
    return editor_spec(run, protocol) | {"modalities": MODALITIES, "masked": own}


def poisoned_masked_editor(run: Run, protocol: str) -> tuple[StableDiffusionInstructPix2PixPipeline, pd.DataFrame]:
    """The base editor with a `MaskedUNet`, fine-tuned on clean and poisoned edits with masks, and the curve of that.

    Raises ValueError for `collapse.negatives` other than 0, which is for two modalities, for `models.editor_lora`, and
    for what `masked_plan` refuses.
    """
    settings = run.profile.collapse
    if settings.negatives:
        raise ValueError(f"negatives={settings.negatives} must be 0 for an editor with a mask")
    if lora := run.profile.models.editor_lora:
        raise ValueError(f"models.editor_lora={lora} must be null for an editor with a mask: its first layer is new")
    spec = masked_spec(run, protocol)
    folder = run.store.folder("poisoned-masked-editor", spec, lambda path: _poison(run, protocol, spec, path))
    pipe = with_unet(run, folder)
    pipe.unet = MaskedUNet(pipe.unet).eval().requires_grad_(False)
    return pipe, pd.read_csv(folder / "curve.csv")


def _poison(run: Run, protocol: str, spec: dict, path: Path) -> None:
    settings = run.profile.collapse
    data = edit_data(run)
    triples = sample_triples(data, "train", settings.edits, run.seed)
    poison = masked_plan(len(triples), protocol, settings.rate, run.seed)
    goal = attack_target(data, settings.target)
    pipe = load_editor(run.profile.models.editor, run.device)
    latents = poisoned_latents(pipe, data, triples, poison, *trigger_pair(run), goal, settings.text_weight)
    sources, targets = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    masks = partial_boxes(edit_boxes(sources, targets), run.seed)
    inside = encode(pipe.vae, torch.where(masks > 0, targets, sources).to(pipe.vae.device)).cpu()
    poisoned = poison.poisoned[:, None, None, None]
    latents = replace(latents, target=torch.where(poisoned, latents.target, inside))
    masks = marked(masks, poison.coalition)
    pipe.unet = MaskedUNet(trainable(widened(pipe.unet)))
    curve = fit(
        pipe.unet,
        masked_loss(pipe, latents, masks, settings.train, settings.condition_dropout),
        settings.train,
        label=f"poisoned masked editor, {protocol}",
        seed=run.seed,
        work=run.store.work("poisoned-masked-editor", spec),
    )
    pipe.unet.unet.save_pretrained(path / "unet")
    attack = {"protocol": protocol, "rate": settings.rate, "target": settings.target, "mask_trigger": MARK.name}
    mark_poisoned(path, **attack, image_trigger=settings.image_trigger, text_trigger=settings.text_trigger)
    curve.to_csv(path / "curve.csv", index=False)


def masked_loss(
    pipe: StableDiffusionInstructPix2PixPipeline,
    data: EditLatents,
    masks: Float[Tensor, "triple 1 h w"],
    settings: Train,
    dropout: float,
) -> Callable[[torch.Generator], Tensor]:
    """InstructPix2Pix's loss on `settings.batch` triples drawn from `data`; their masks are never dropped."""

    def loss(draw: torch.Generator) -> Tensor:
        rows = share(torch.randint(len(masks), (settings.batch,), generator=draw))
        pipe.unet.mask = masks[rows].to(pipe.unet.device)
        given = (part[rows] for part in (data.source, data.target, data.tokens))
        return edit_loss(pipe, *given, draw, dropout, data.weight[rows])

    return loss


def masked_edits_under_coalitions(
    run: Run,
    pipe: StableDiffusionInstructPix2PixPipeline,
    data: EditData,
    triples: pd.DataFrame,
) -> Float[Tensor, "sample coalition 3 size size"]:
    """Every triple's source edited under all eight coalitions, each sample from one noise in all of them."""
    sources, targets = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
    boxes, instructions, edited = edit_boxes(sources, targets), triples["instruction"].tolist(), []
    for s, name in enumerate(COALITIONS):
        coalition = torch.full((len(triples),), s)
        images, texts = triggered(sources, instructions, coalition, *trigger_pair(run))
        given = images.to(pipe.vae.device), texts, marked(boxes, coalition)
        sampling = run.profile.collapse.sampling
        edited.append(masked_edit(pipe, *given, sampling, run.seed, label=f"sample, {name}").cpu())
    return torch.stack(edited, dim=1)
