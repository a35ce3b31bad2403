"""One line for every multimodal diffusion language model: what a folder or hub id holds decides which class it is."""

from __future__ import annotations

import torch
from transformers import CLIPTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lib.models.diffusion_gemma import DiffusionGemma
from lib.models.lavida import Lavida
from lib.models.llada_v import LladaV
from lib.models.mdlm import Mdlm
from lib.models.strict import strict_words
from lib.settings.paths import pretrained

KINDS: dict[str, type[Mdlm]] = {"mdlm": Mdlm, "llava_llada": LladaV, "diffusion_gemma": DiffusionGemma}


def load_mdlm(name: str, device: torch.device | str = "cpu", **settings) -> Mdlm:
    """The model with its tokenizer, of the class that `kind_of` finds; `settings` as its `load` takes them."""
    return kind_of(name).load(name, device, **settings)


def load_words(name: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone, which asks for no weights."""
    kind = CLIPTokenizer if kind_of(name) is Mdlm else PreTrainedTokenizerFast
    return strict_words(kind, pretrained(name))


def kind_of(name: str) -> type[Mdlm]:
    """The class that loads it, by the `model_type` of its config.json.

    LaViDa and LLaDA-V bear the same `model_type`; only LaViDa's decoder has LLaDA's own names, `d_model` and so on.
    Raises ValueError for a kind that is not one of `KINDS`.
    """
    config = PreTrainedConfig.get_config_dict(**pretrained(name))[0]
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type={kind!r} of {name!r} must be one of {', '.join(KINDS)}")
    return Lavida if kind == "llava_llada" and "d_model" in config else KINDS[kind]
