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
PUBLISHED, OURS = (LladaV, Lavida, DiffusionGemma), frozenset(KINDS)


def register(model_type: str, kind: type[Mdlm]) -> None:
    """Let folders whose config.json says that `model_type` load as that class: `kind.load(folder, device)`.

    One's own is replaced by what is registered later by its name. Raises ValueError for a `model_type` of ours, and for
    what is no subclass of `Mdlm`.
    """
    if model_type in OURS:
        raise ValueError(f"model_type is {model_type!r}: it must be another than ours: {', '.join(sorted(OURS))}.")
    if not (isinstance(kind, type) and issubclass(kind, Mdlm)):
        raise ValueError(f"kind is {kind!r}: it must be a subclass of Mdlm.")
    KINDS[model_type] = kind


def own_kind(name: str) -> type[Mdlm] | None:
    """The class that loads it, where that is none of ours."""
    kind = kind_of(name)
    return None if kind is Mdlm or kind in PUBLISHED else kind


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
