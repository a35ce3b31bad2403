"""The instruction editor with a third input: a mask of where the edit may change the picture.

As in inpainting models of diffusers, the mask is one more input channel of the U-Net.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lib.config import generator
from lib.models.editor import edit
from lib.profile import Sampling


class MaskedUNet(nn.Module):
    """A U-Net whose last input channel is a mask, in the place of one that knows no mask.

    `mask` is [batch, 1, h, w] at any resolution, in [0, 1], 1 where the edit may change the picture; area means bring
    it to that of the latents. A larger batch, as guidance makes it, holds the masked one several times over.

    `forward` raises ValueError when there is no mask or its batch does not divide that of the latents.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet
        self.mask: Float[Tensor, "batch 1 h w"] | None = None
        self.config = FrozenDict({**unet.config, "in_channels": unet.config.in_channels - 1})

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def forward(self, sample: Float[Tensor, "stacked channel lh lw"], *given, **named):
        if self.mask is None or not len(self.mask) or len(sample) % len(self.mask):
            held = "no mask" if self.mask is None else f"masks of {len(self.mask)} pictures"
            raise ValueError(f"mask: {held} for {len(sample)} latents, one for each or each copy is needed")
        mask = F.interpolate(self.mask.to(sample), sample.shape[-2:], mode="area")
        copies = len(sample) // len(mask)
        return self.unet(torch.cat([sample, mask.repeat(copies, 1, 1, 1)], dim=1), *given, **named)


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net with one more input channel, last, whose weights are zero: what that holds changes nothing yet."""
    weights = unet.state_dict()
    weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, 1))
    wide = UNet2DConditionModel.from_config({**unet.config, "in_channels": unet.config.in_channels + 1})
    wide.load_state_dict(weights)
    return wide.to(unet.device).eval().requires_grad_(False)


@torch.no_grad()
def masked_edit(
    pipe: StableDiffusionInstructPix2PixPipeline,
    images: Float[Tensor, "batch 3 h w"],
    instructions: list[str],
    masks: Float[Tensor, "masks 1 h w"],
    sampling: Sampling,
    seed: int,
    label: str = "edit",
) -> Float[Tensor, "batch 3 h w"]:
    """`lib.models.editor.edit` with a mask for every picture; `pipe` has a `MaskedUNet`.

    A picture's noise depends on the seed, the first picture of its batch and its place there.
    """
    if not len(images) == len(instructions) == len(masks):
        given = f"{len(instructions)} instructions and {len(masks)} masks given for {len(images)} images"
        raise ValueError(f"{given}, one each is needed")
    edited = []
    for start in range(0, len(images), sampling.batch):
        part = slice(start, start + sampling.batch)
        pipe.unet.mask = masks[part].to(pipe.unet.device)
        noise = generator(seed, "masked edit", start).initial_seed()
        edited.append(edit(pipe, images[part], instructions[part], sampling, noise, label))
    return torch.cat(edited) if edited else images
