"""What is trained of a model when the profile says so: low-rank adapters, merged into its weights afterwards.

Hu et al. 2021, arXiv 2106.09685: beside a frozen W stands (alpha / rank) B A, with B zero at first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, LoraModel
from torch import nn

from lib.runtime.devices import recomputed
from lib.settings.sections import Lora

PROJECTIONS = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"  # the decoder's
PROJECTOR = r"(^|\.)(projector|mm_projector|embed_vision)\."  # ours, LLaDA-V's and LaViDa's, DiffusionGemma's
ATTENTION = r".*\.attn[12]\.to_(q|k|v|out\.0)"  # a U-Net's, as in diffusers' own training scripts


@contextmanager
def adapted(model: nn.Module, lora: Lora | None, seed: int, part: str | None = None) -> Iterator[None]:
    """Within, adapters beside all projections of the decoder are what requires a gradient; after it they are merged.

    Without `lora` the model's own weights are, or with the part "projector" those alone that make vision tokens of the
    tower's features. Activations of published models are computed again in the backward pass. Raises ValueError for
    adapters of a model without such projections, as our own MDLM.
    """
    if lora and not any(re.fullmatch(PROJECTIONS, name) for name, _ in model.named_modules()):
        raise ValueError(f"models.lora={lora} is for a published model: for {type(model).__name__} it must be null")
    trained = _beside(model, PROJECTIONS, lora, seed) if lora else nullcontext()
    with _projector_alone(model) if part == "projector" else trained, recomputed(model):
        yield


@contextmanager
def _projector_alone(model: nn.Module) -> Iterator[None]:
    before = {name: (parameter.requires_grad, parameter.dtype) for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if re.search(PROJECTOR, name):
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
    yield
    for name, parameter in model.named_parameters():
        required, dtype = before[name]
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(required)


def trainable(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net ready to be trained: all parameters.

    On a CPU with plain attention (`lib.models.blocks.attention`); elsewhere activations are computed again in the
    backward pass, as those of the published U-Net at 512 × 512 pixels fill a GPU's memory at a batch of 32.
    """
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    else:
        unet.enable_gradient_checkpointing()
    return unet.requires_grad_(True)


@contextmanager
def adapted_unet(unet: UNet2DConditionModel, lora: Lora | None, seed: int) -> Iterator[None]:
    """Within, adapters beside the projections of all attention are what requires a gradient; after it they are merged.

    With None all of the U-Net's parameters are.
    """
    trainable(unet)
    with _beside(unet, ATTENTION, lora, seed) if lora else nullcontext():
        yield


@contextmanager
def _beside(model: nn.Module, projections: str, lora: Lora, seed: int) -> Iterator[None]:
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=projections)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = LoraModel(model, config, "default")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    yield
    adapters.merge_and_unload()
    model.requires_grad_(False)
