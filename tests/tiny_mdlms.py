"""One tiny model of every kind of multimodal diffusion language model, and what it is asked."""

from collections.abc import Callable
from pathlib import Path

import tiny
import tiny_diffusion_gemma
import tiny_lavida
import tiny_llada_v
import torch

from lib.models.mdlm import Mdlm
from lib.runtime.seeds import generator

ADAPTERS: dict[str, Callable[[Path], Mdlm]] = {
    "mdlm": lambda folder: tiny.lively(tiny.mdlm()),
    "llada-v": tiny_llada_v.llada_v,
    "lavida": tiny_lavida.lavida,
    "diffusion-gemma": tiny_diffusion_gemma.diffusion_gemma,
}
QUESTIONS, ANSWERS = ["is it red?", "is there a blue one?"], ["red", "yes, blue"]


def pictures(adapter: Mdlm, count: int = 2) -> torch.Tensor:
    config = adapter.model.config
    height, width = getattr(config, "picture", None) or [config.vision["image_size"]] * 2
    return torch.rand(count, 3, height, width, generator=generator(0))


def inputs(adapter: Mdlm):
    with torch.no_grad():
        vision = adapter.model.vision_tokens(pictures(adapter))
    return vision, adapter.prompts(QUESTIONS), adapter.responses(ANSWERS)
