"""Square pictures that are drawn, or so small that all are held in memory: they lie nowhere in another shape."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lib.data.interface import TriggerMasks
from lib.poisoning.triggers import ImageTrigger


@dataclass(frozen=True)
class Squares:
    """images: `[picture, 3, size, size]` uint8."""

    images: UInt8[Tensor, "picture 3 size size"]

    def pictures(
        self, indices: Int[Tensor, " batch"], trigger: ImageTrigger | None = None
    ) -> Float[Tensor, "batch 3 size size"]:
        """Pictures as floats in [0, 1]; with `trigger` all of them carry it."""
        images = self.images[indices].float() / 255
        return images if trigger is None else trigger(images)

    def trigger_masks(self, indices: Int[Tensor, " batch"], trigger: ImageTrigger) -> TriggerMasks:
        """One mask for all."""
        return TriggerMasks(trigger.mask(*self.images.shape[-2:])[None], indices.new_zeros(len(indices)))
