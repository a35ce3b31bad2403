"""One line for every multimodal diffusion language model: what a folder or hub id holds decides which class it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lib.config import model_source
from lib.models.diffusion_gemma import DiffusionGemma
from lib.models.lavida import Lavida
from lib.models.llada_v import LladaV
from lib.models.mdlm import Mdlm, masked_diffusion_loss

KINDS: dict[str, type[Mdlm]] = {"mdlm": Mdlm, "llava_llada": LladaV, "diffusion_gemma": DiffusionGemma}


def load_mdlm(name: str, device: torch.device | str = "cpu", **settings) -> Mdlm:
    """The model with its tokenizer, by the `model_type` of its config.json; `settings` as its `load` takes them.

    LaViDa and LLaDA-V bear the same `model_type`; only LaViDa's decoder has LLaDA's own names, `d_model` and so on.
    Raises ValueError for a kind that is not one of `KINDS`.
    """
    config = PreTrainedConfig.get_config_dict(model_source(name))[0]
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type={kind!r} of {name!r} must be one of {', '.join(KINDS)}")
    chosen = Lavida if kind == "llava_llada" and "d_model" in config else KINDS[kind]
    return chosen.load(name, device, **settings)


def diffusion_loss(mdlm: Mdlm) -> Callable[..., Tensor]:
    """What a model is fine-tuned with, as `masked_diffusion_loss` is called: that, but where it has one of its own."""
    return getattr(mdlm, "loss", masked_diffusion_loss)
