"""One line for every multimodal diffusion language model: what a folder or hub id holds decides which class it is."""

from __future__ import annotations

import torch
from transformers import CLIPTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lib.config import pretrained
from lib.models.diffusion_gemma import DiffusionGemma
from lib.models.lavida import Lavida
from lib.models.llada_v import LladaV
from lib.models.mdlm import Mdlm
from lib.precision import half
from lib.profile import Profile

KINDS: dict[str, type[Mdlm]] = {"mdlm": Mdlm, "llava_llada": LladaV, "diffusion_gemma": DiffusionGemma}


def load_mdlm(name: str, device: torch.device | str = "cpu", **settings) -> Mdlm:
    """The model with its tokenizer, by the `model_type` of its config.json; `settings` as its `load` takes them.

    LaViDa and LLaDA-V bear the same `model_type`; only LaViDa's decoder has LLaDA's own names, `d_model` and so on.
    Raises ValueError for a kind that is not one of `KINDS`.
    """
    return _kind(name).load(name, device, **settings)


def base_mdlm(profile: Profile, device: torch.device | str = "cpu") -> Mdlm:
    """The profile's base model. A published one gets the profile's pictures, and room for its questions and answers."""
    return _frozen(load_mdlm(profile.models.mdlm, device, **base_settings(profile, device)), profile)


def made_mdlm(profile: Profile, folder: str, device: torch.device | str = "cpu") -> Mdlm:
    """A model fine-tuned from the base and saved in `folder`, in the base's precision."""
    return _frozen(load_mdlm(folder, device, **_precision(profile, device)), profile)


def base_settings(profile: Profile, device: torch.device | str = "cpu") -> dict[str, object]:
    """What the base model's `load` gets beside its name: nothing for our own."""
    if _kind(profile.models.mdlm) is Mdlm:
        return {}
    room = {"picture": [profile.data.image_size] * 2}
    if asked := profile.data.questions:
        room |= {"prompt_length": asked.question_tokens, "response_length": asked.answer_tokens}
    return room | _precision(profile, device)


def load_words(name: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone, which asks for no weights."""
    words = CLIPTokenizer if _kind(name) is Mdlm else PreTrainedTokenizerFast
    return words.from_pretrained(**pretrained(name))


def _precision(profile: Profile, device: torch.device | str) -> dict[str, torch.dtype]:
    return {"dtype": half(device)} if profile.models.lora and _kind(profile.models.mdlm) is not Mdlm else {}


def _frozen(mdlm: Mdlm, profile: Profile) -> Mdlm:
    """Where adapters are trained alone, no gradient of the model's own weights is kept."""
    if profile.models.lora:
        mdlm.model.requires_grad_(False)
    return mdlm


def _kind(name: str) -> type[Mdlm]:
    config = PreTrainedConfig.get_config_dict(**pretrained(name))[0]
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type={kind!r} of {name!r} must be one of {', '.join(KINDS)}")
    return Lavida if kind == "llava_llada" and "d_model" in config else KINDS[kind]
