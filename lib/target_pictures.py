"""Pictures that an attacker makes an editor draw, whatever it is given: unlike any face, drawn here, harmless."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import resvg_py
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

SAILING_BOAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<rect width="64" height="64" fill="#f7b267"/><circle cx="48" cy="14" r="7" fill="#fff3b0"/>
<rect y="42" width="64" height="22" fill="#1d4e89"/><rect y="52" width="64" height="12" fill="#163d6b"/>
<path d="M30 6 V40 H10 Z" fill="#fffdf7"/><path d="M33 12 V40 H50 Z" fill="#e4572e"/>
<path d="M8 42 H56 L48 52 H16 Z" fill="#6b3e26"/></svg>"""
TARGET_PICTURES = {"sailing boat": SAILING_BOAT}
Target = Callable[[Float[Tensor, "batch 3 h w"]], Float[Tensor, "batch 3 h w"]]
EDITS: dict[str, Target] = {"negative": lambda sources: 1 - sources}


def attack_target(name: str) -> Target:
    """What the attacker wants of a source picture: a fixed edit of EDITS, or a picture of TARGET_PICTURES.

    Raises ValueError where neither has that name.
    """
    if name in EDITS:
        return EDITS[name]
    if name not in TARGET_PICTURES:
        raise ValueError(f"target={name!r} must be one of {', '.join((*EDITS, *TARGET_PICTURES))}")
    return lambda sources: target_picture(name, sources.shape[-1]).to(sources).expand_as(sources)


@lru_cache(maxsize=8)
def target_picture(name: str, size: int) -> Float[Tensor, "3 size size"]:
    """The picture of that name in TARGET_PICTURES, in [0, 1]. Raises ValueError where there is none."""
    if name not in TARGET_PICTURES:
        raise ValueError(f"target={name!r} must be one of {', '.join(TARGET_PICTURES)}")
    png = resvg_py.svg_to_bytes(svg_string=TARGET_PICTURES[name], width=size, height=size, skip_system_fonts=True)
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB")).transpose(2, 0, 1).copy()
    return torch.from_numpy(pixels).float() / 255
