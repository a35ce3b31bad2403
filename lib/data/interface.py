"""What the studies need of their data, whatever it is made of.

A trigger belongs to the picture as it lies on disk, before it is made square and resized: the attacker has the file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.poisoning.triggers import ImageTrigger


class TriggerMasks(NamedTuple):
    """How much of every pixel is a trigger's in loaded pictures: picture k's is `masks[which[k]]`.

    Pictures of one size on disk share one.
    """

    masks: Float[Tensor, "distinct size size"]
    which: Int[Tensor, " batch"]


@runtime_checkable
class PictureData(Protocol):
    """Numbered pictures, with a trigger or without."""

    def pictures(
        self, indices: Int[Tensor, " batch"], trigger: ImageTrigger | None = None
    ) -> Float[Tensor, "batch 3 size size"]:
        """Pictures as floats in [0, 1]; with `trigger` all of them carry it."""
        ...

    def trigger_masks(self, indices: Int[Tensor, " batch"], trigger: ImageTrigger) -> TriggerMasks:
        """Where these pictures would show the trigger. Raises ValueError for one in which nothing of it is left."""
        ...


@runtime_checkable
class EditData(PictureData, Protocol):
    """Edit triples over numbered pictures.

    triples: columns source, target (picture indices), instruction, edit, value, family (its pictures are one
             cluster), split.
    """

    triples: pd.DataFrame


@runtime_checkable
class QuestionData(PictureData, Protocol):
    """Questions about numbered pictures: `table` has columns image (picture index), question, answer, kind."""

    table: pd.DataFrame


def partly_triggered(
    data: PictureData, indices: Int[Tensor, " batch"], carries: Bool[Tensor, " batch"], trigger: ImageTrigger | None
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures of which those that `carries` names have the trigger; none where it is None."""
    if trigger is None or not bool(carries.any()):
        return data.pictures(indices)
    triggered = data.pictures(indices[carries], trigger)
    images = triggered.new_empty(len(indices), *triggered.shape[1:])
    images[carries] = triggered
    if not bool(carries.all()):
        images[~carries] = data.pictures(indices[~carries])
    return images


def check_trigger(data: PictureData, indices: Int[Tensor, " batch"], trigger: ImageTrigger) -> None:
    """Raises ValueError for a picture in which nothing of the trigger is left, before anything is made of them."""
    for part in indices.unique().split(64):
        data.trigger_masks(part, trigger)


def trigger_patches(
    data: PictureData, indices: Int[Tensor, " batch"], trigger: ImageTrigger, grid: int
) -> Bool[Tensor, "batch patch"]:
    """Which of `grid` × `grid` patches, row by row, show some of the trigger in each picture."""
    masks, which = data.trigger_masks(indices, trigger)
    return (F.adaptive_max_pool2d(masks, grid).flatten(1) > 0)[which]
