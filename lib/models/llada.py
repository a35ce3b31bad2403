"""LLaDA's decoder: transformers' Llama in which every position sees every other one (Nie et al. 2025)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

IMAGE = -200  # in a prompt: the vision tokens' place (LLaVA's number)


class LladaDecoder(LlamaModel):
    """A `LlamaModel` without the causal mask: all positions are seen but those that `attention_mask` leaves out."""

    def __init__(self, config: LlamaConfig):
        config.is_causal = False
        super().__init__(config)


def picture_place(prompt: Int[Tensor, "batch prompt"]) -> Bool[Tensor, "batch prompt"]:
    """Where prompts hold `IMAGE`. Raises ValueError for a prompt that has not exactly one."""
    image = prompt == IMAGE
    if bool((image.sum(1) != 1).any()):
        raise ValueError(f"prompt has {image.sum(1).tolist()} places for the picture by row: exactly one is needed")
    return image


def splice(
    prompt: Int[Tensor, "batch prompt"], vision: int, response: int, pad_id: int
) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"]]:
    """Positions for the rotary embedding of [vision | prompt | response], and which of them are seen.

    Attention knows no order but these positions, so nothing has to be moved: the vision tokens get the places at the
    prompt's `IMAGE`, and neither that nor padding takes one, so that a padded prompt gives what an unpadded one does.
    Raises ValueError for a prompt that has not exactly one `IMAGE` where there are vision tokens.
    """
    image = picture_place(prompt) if vision else prompt == IMAGE
    text, after = (prompt != pad_id) & ~image, image.cumsum(1) > 0
    words = text.cumsum(1)
    before = (text & ~after).sum(1, keepdim=True)
    end = words[:, -1:] + vision
    picture, answer = (torch.arange(n, device=prompt.device) for n in (vision, response))
    position_ids = (words - 1).clamp(min=0) + vision * after
    visible = text.new_ones(len(prompt), vision), text, text.new_ones(len(prompt), response)
    return torch.cat([before + picture, position_ids, end + answer], 1), torch.cat(visible, 1)
