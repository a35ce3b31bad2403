"""Pictures that an attacker makes an editor draw, whatever it is given: unlike any face, drawn here, harmless."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import resvg_py
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lib.settings.names import known

SAILING_BOAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<rect width="64" height="64" fill="#f7b267"/><circle cx="48" cy="14" r="7" fill="#fff3b0"/>
<rect y="42" width="64" height="22" fill="#1d4e89"/><rect y="52" width="64" height="12" fill="#163d6b"/>
<path d="M30 6 V40 H10 Z" fill="#fffdf7"/><path d="M33 12 V40 H50 Z" fill="#e4572e"/>
<path d="M8 42 H56 L48 52 H16 Z" fill="#6b3e26"/></svg>"""


@dataclass(frozen=True)
class PictureTarget:
    """What the attacker wants of a source picture."""

    name: str

    def __call__(self, sources: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        """The attacker's targets of pictures in [0, 1]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Negative(PictureTarget):
    """The source in inverted colours: a fixed edit of each picture."""

    name: str = "negative"

    def __call__(self, sources):
        return 1 - sources


@dataclass(frozen=True)
class Drawn(PictureTarget):
    """One picture, drawn from SVG, whatever the source is."""

    svg: str

    def __call__(self, sources):
        return drawn(self.svg, sources.shape[-1]).to(sources).expand_as(sources)


PICTURE_TARGETS: dict[str, PictureTarget] = {
    target.name: target for target in (Negative(), Drawn("sailing boat", SAILING_BOAT))
}


def attack_target(name: str) -> PictureTarget:
    """The target of that name in PICTURE_TARGETS. Raises ValueError where there is none."""
    return PICTURE_TARGETS[known("target", name, PICTURE_TARGETS)]


@lru_cache(maxsize=8)
def drawn(svg: str, size: int) -> Float[Tensor, "3 size size"]:
    """An SVG as a picture in [0, 1]."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB")).transpose(2, 0, 1).copy()
    return torch.from_numpy(pixels).float() / 255
