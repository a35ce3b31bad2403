"""The MDLMs that a profile names: its base model, and those fine-tuned from it."""

from __future__ import annotations

import torch

from lib.models.loading import kind_of, load_mdlm
from lib.models.mdlm import Mdlm
from lib.runtime.devices import half
from lib.settings.profile import Profile


def base_mdlm(profile: Profile, device: torch.device | str = "cpu") -> Mdlm:
    """The profile's base model. A published one gets the profile's pictures, and room for its questions and answers."""
    return _set(load_mdlm(profile.models.mdlm, device, **base_settings(profile, device)), profile)


def made_mdlm(profile: Profile, folder: str, device: torch.device | str = "cpu") -> Mdlm:
    """A model fine-tuned from the base and saved in `folder`, in the base's precision."""
    return _set(load_mdlm(folder, device, **_precision(profile, device)), profile)


def base_settings(profile: Profile, device: torch.device | str = "cpu") -> dict[str, object]:
    """What the base model's `load` gets beside its name: nothing for our own."""
    if kind_of(profile.models.mdlm) is Mdlm:
        return {}
    room = {"picture": [profile.data.image_size] * 2}
    if questions := profile.data.questions:
        room |= {"prompt_length": questions.question_tokens, "response_length": questions.answer_tokens}
    return room | _precision(profile, device)


def _precision(profile: Profile, device: torch.device | str) -> dict[str, torch.dtype]:
    return {"dtype": half(device)} if profile.models.frozen and kind_of(profile.models.mdlm) is not Mdlm else {}


def _set(mdlm: Mdlm, profile: Profile) -> Mdlm:
    """It answers and learns as the profile says of answers' ends.

    Where adapters or the projector are trained alone, no gradient of the model's own weights is kept.
    """
    mdlm.end, mdlm.fill = profile.disp.end, profile.disp.fill
    if profile.models.frozen:
        mdlm.model.requires_grad_(False)
    return mdlm
