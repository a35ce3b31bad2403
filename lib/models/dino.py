"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): an embedding of pictures that no text has seen."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Model

from lib.models.clip import preprocess
from lib.models.strict import strict
from lib.settings.paths import pretrained


class Dino:
    """A model with its processor: pictures in [0, 1] to the class token after the last norm."""

    def __init__(self, model: Dinov2Model, processor: BitImageProcessorPil):
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> Dino:
        """From a local folder or the hub, in float32. Raises ValueError for a checkpoint that is not whole."""
        source = pretrained(name)
        model = strict(Dinov2Model, source, dtype=torch.float32)
        return cls(model.to(device).eval(), BitImageProcessorPil.from_pretrained(**source))

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch dim"]:
        """The class token of each."""
        return self.model(pixel_values=preprocess(images, self.processor).to(self.model.device)).pooler_output
