"""How `make base` trains the base models."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lib.settings.sections import Positive, Section, Train, Transformer


class ClipBase(Section):
    """`seen`: from how many tokens of a picture each attribute is named while the tower learns."""

    tower: Transformer
    patch: Positive
    projection: Positive
    seen: Positive
    train: Train


class EditorBase(Section):
    """`latent_channels`: of the autoencoder, which halves a picture's sides once less often than it has widths. The
    U-Net is trained in stages, each with a learning rate that falls to zero."""

    vae_channels: tuple[Positive, ...]
    latent_channels: Positive
    vae_train: Train
    unet_channels: tuple[Positive, ...]
    unet_stages: Annotated[tuple[Train, ...], Field(min_length=1)]


class ControlBase(Section):
    """A small text encoder for the same editor, frozen, that is trained on the edit instructions alone."""

    text: Transformer
    train: Train


class MdlmShape(Section):
    """`levels`: of which of the tower's hidden states vision tokens are made."""

    decoder: Transformer
    response_length: Positive
    prompt_length: Positive
    levels: tuple[int, ...] = (-2,)


class FacesBase(MdlmShape):
    """`seen`: how many vision tokens, drawn anew at every step, the model is shown while it learns."""

    seen: Positive
    stages: tuple[Train, Train]


class VqaBase(MdlmShape):
    stages: tuple[Train, Train, Train, Train, Train, Train, Train]


class Base(Section):
    """How `make base` trains the base models: `mdlm` is that of faces, `vqa` that of easy-VQA."""

    clip: ClipBase
    editor: EditorBase
    control: ControlBase
    mdlm: FacesBase
    vqa: VqaBase
