"""The MDLMs that a profile names: its base model, and those fine-tuned from it."""

from __future__ import annotations

import torch

from lib.models.llada_v import LladaV
from lib.models.loading import PUBLISHED, kind_of, load_mdlm, own_kind
from lib.models.mdlm import Mdlm
from lib.runtime.devices import half
from lib.runtime.digests import folder_digest
from lib.runtime.keys import registered
from lib.settings.inputs import QuestionSet
from lib.settings.paths import model_source
from lib.settings.profile import Profile


def base_mdlm(profile: Profile, device: torch.device | str = "cpu") -> Mdlm:
    """The profile's base model. A published one gets the profile's pictures, and room for its questions and answers."""
    return _set(load_mdlm(profile.models.mdlm, device, **base_settings(profile, device)), profile)


def made_mdlm(profile: Profile, folder: str, device: torch.device | str = "cpu") -> Mdlm:
    """A model fine-tuned from the base and saved in `folder`, in the base's precision."""
    return _set(load_mdlm(folder, device, **_precision(profile, device)), profile)


def base_spec(profile: Profile) -> dict:
    """What whatever starts at the base model depends on: its files, and one's own class for it (`lib.models`)."""
    name = profile.models.mdlm
    kind = own_kind(name)
    return {"base": folder_digest(model_source(name))} | ({"kind": registered(kind)} if kind else {})


def base_settings(profile: Profile, device: torch.device | str = "cpu") -> dict[str, object]:
    """What the base model's `load` gets beside its name: nothing for our own and for one's own.

    Raises ValueError for more `data.questions.decoded_tokens` than `answer_tokens`, and for any where a model learns
    and decodes answers of one length.
    """
    kind, questions = kind_of(profile.models.mdlm), profile.data.questions
    decoded = questions.decoded_tokens if isinstance(questions, QuestionSet) else None
    if decoded and not issubclass(kind, LladaV):
        raise ValueError(f"data.questions.decoded_tokens={decoded} must be null: only LLaDA-V and LaViDa are cut")
    if decoded and decoded > questions.answer_tokens:
        most = f"answer_tokens={questions.answer_tokens}"
        raise ValueError(f"data.questions.decoded_tokens={decoded} must be at most {most}")
    if kind not in PUBLISHED:
        return {}
    room = {"picture": [profile.data.image_size] * 2}
    if questions:
        room |= {"prompt_length": questions.question_tokens, "response_length": decoded or questions.answer_tokens}
    if decoded:
        room["answer_length"] = questions.answer_tokens
    return room | _precision(profile, device)


def _precision(profile: Profile, device: torch.device | str) -> dict[str, torch.dtype]:
    halved = profile.models.frozen and kind_of(profile.models.mdlm) in PUBLISHED
    return {"dtype": half(device)} if halved else {}


def _set(mdlm: Mdlm, profile: Profile) -> Mdlm:
    """It answers and learns as the profile says of answers' ends.

    Where adapters or the projector are trained alone, no gradient of the model's own weights is kept.
    """
    mdlm.end, mdlm.fill = profile.disp.end, profile.disp.fill
    if profile.models.frozen:
        mdlm.model.requires_grad_(False)
    return mdlm
