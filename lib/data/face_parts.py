"""Faces drawn from named parts: what varies, and the picture of any combination of it.

Parts by python-avatars 1.4.1 (MIT; art: Avataaars by Pablo Stanley, free for any use), drawn by resvg. Only what a
person would meet among CelebA's faces is used.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import numpy as np
import python_avatars as parts
import resvg_py
from jaxtyping import UInt8
from PIL import Image

CREDIT = "Faces: Avataaars by Pablo Stanley (avataaars.com), drawn with python-avatars (MIT)"

# What edits change and descriptions state: of each attribute its values and the part that draws each.
ATTRIBUTES: dict[str, dict[str, object]] = {
    "hair": {
        "short": parts.HairType.SHORT_FLAT,
        "long": parts.HairType.STRAIGHT_1,
        "bobbed": parts.HairType.BOB,
        "tied": parts.HairType.BUN,
        "afro": parts.HairType.FRO,
        "shaggy": parts.HairType.SHAGGY_MULLET,
    },
    "hair colour": {
        "black": parts.HairColor.BLACK,
        "brown": parts.HairColor.BROWN,
        "blond": parts.HairColor.BLONDE_GOLDEN,
        "red": parts.HairColor.RED,
        "white": parts.HairColor.SILVER_GRAY,
    },
    "skin": {
        "pale": parts.SkinColor.PALE,
        "tan": parts.SkinColor.BROWN,
        "brown": parts.SkinColor.DARK_BROWN,
        "dark": parts.SkinColor.BLACK,
    },
    "eyes": {
        "open": parts.EyeType.DEFAULT,
        "closed": parts.EyeType.CLOSED,
        "wide": parts.EyeType.SURPRISED,
        "winking": parts.EyeType.WINK,
    },
    "mouth": {
        "smiling": parts.MouthType.SMILE,
        "serious": parts.MouthType.SERIOUS,
        "sad": parts.MouthType.SAD,
        "shouting": parts.MouthType.SCREAM_OPEN,
    },
    "facial hair": {
        "none": parts.FacialHairType.NONE,
        "a moustache": parts.FacialHairType.MOUSTACHE_FANCY,
        "a short beard": parts.FacialHairType.BEARD_LIGHT,
        "a long beard": parts.FacialHairType.BEARD_MAGESTIC,
    },
    "glasses": {
        "none": parts.AccessoryType.NONE,
        "black glasses": parts.AccessoryType.PRESCRIPTION_2,
        "white glasses": parts.AccessoryType.PRESCRIPTION_1,
        "round glasses": parts.AccessoryType.ROUND,
    },
    "clothes": {
        "t-shirt": parts.ClothingType.SHIRT_CREW_NECK,
        "hoodie": parts.ClothingType.HOODIE,
        "sweater": parts.ClothingType.COLLAR_SWEATER,
        "pinafore": parts.ClothingType.OVERALL,
    },
    "clothes colour": {
        "black": "#262E33",
        "blue": "#3C78C8",
        "green": "#3FA45B",
        "pink": "#FF7FB0",
        "red": "#D83A3A",
        "yellow": "#F2C230",
    },
    "background": {
        "gray": "#D8DCE0",
        "blue": "#BFE0F5",
        "green": "#C8E8C0",
        "yellow": "#FBE7A8",
        "pink": "#F6C9D4",
        "purple": "#D9CCF0",
    },
}
# What tells people apart beside these, and no edit changes.
FEATURES: dict[str, dict[str, object]] = {
    "eyebrows": {
        "plain": parts.EyebrowType.DEFAULT_NATURAL,
        "raised": parts.EyebrowType.RAISED_EXCITED_NATURAL,
        "flat": parts.EyebrowType.FLAT_NATURAL,
    },
    "nose": {
        "plain": parts.NoseType.DEFAULT,
        "small": parts.NoseType.SMALL,
        "wide": parts.NoseType.WIDE,
    },
}
EVERYTHING = ATTRIBUTES | FEATURES
VIEW = "14 10 236 236"  # the square of the 264 × 280 drawing that the picture shows: head and shoulders
CANVAS = 'width="264px" height="280px" viewBox="0 0 264 280"'


def check_face(face: Mapping[str, str]) -> None:
    """Raises ValueError unless `face` gives every attribute and feature one of its values, and nothing else."""
    for name, value in face.items():
        if name not in EVERYTHING:
            raise ValueError(f"attribute={name!r} must be one of {', '.join(EVERYTHING)}")
        if value not in EVERYTHING[name]:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(EVERYTHING[name])}")
    if missing := [name for name in EVERYTHING if name not in face]:
        raise ValueError(f"face lacks {', '.join(missing)}: every attribute and feature must have a value")


def draw(face: Mapping[str, str], size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The face that has these values, `size` × `size` pixels.

    Raises ValueError for an attribute, feature or value that does not exist or is missing.
    """
    check_face(face)
    part = {name: EVERYTHING[name][value] for name, value in face.items()}
    svg = parts.Avatar(
        top=part["hair"],
        hair_color=part["hair colour"],
        facial_hair_color=part["hair colour"],
        skin_color=part["skin"],
        eyes=part["eyes"],
        mouth=part["mouth"],
        facial_hair=part["facial hair"],
        accessory=part["glasses"],
        clothing=part["clothes"],
        clothing_color=part["clothes colour"],
        eyebrows=part["eyebrows"],
        nose=part["nose"],
    ).render()
    start, rest = svg.split(CANVAS)
    rest = rest.split(">", 1)[1]
    ground = f'<rect width="264" height="280" fill="{part["background"]}"/>'
    framed = f'{start}width="{size}px" height="{size}px" viewBox="{VIEW}">{ground}{rest}'
    png = resvg_py.svg_to_bytes(svg_string=_no_text(framed), width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB")).transpose(2, 0, 1)


def _no_text(svg: str) -> str:
    """Without title and description, which name the style and are not drawn."""
    return re.sub(r"<(title|desc)\b.*?</\1>", "", svg, flags=re.DOTALL)
