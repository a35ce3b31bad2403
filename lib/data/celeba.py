"""CelebA and CelebA-HQ: faces with 40 attributes, as instructions that change one attribute of a face.

CelebA (Liu et al. 2015) and CelebAMask-HQ (Lee et al. 2020) are for non-commercial research. They hold no edited
pictures: an instruction says what a true edit would show, and `lib.studies.celeba_edits` lets an editor draw it.

    CelebA         list_attr_celeba.txt, img_align_celeba/000001.jpg, …
    CelebAMask-HQ  CelebAMask-HQ-attribute-anno.txt, CelebA-HQ-to-CelebA-mapping.txt, CelebA-HQ-img/0.jpg, …
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

# What to say to a face that has the attribute, and to one that has not (None: no such edit). Eyeglasses are left out:
# they are one of the study's image triggers.
PHRASES = {
    "Bangs": ("remove the bangs", "give them bangs"),
    "Black_Hair": (None, "make the hair black"),
    "Blond_Hair": (None, "make the hair blond"),
    "Brown_Hair": (None, "make the hair brown"),
    "Gray_Hair": (None, "make the hair gray"),
    "Heavy_Makeup": ("remove the makeup", "add heavy makeup"),
    "Mustache": ("shave off the mustache", "give them a mustache"),
    "Pale_Skin": (None, "make the skin pale"),
    "Smiling": ("make them serious", "make them smile"),
    "Wearing_Hat": ("take off the hat", "put a hat on them"),
    "Young": ("make them old", "make them young"),
}
LAYOUTS = {
    "list_attr_celeba.txt": "img_align_celeba",
    "Anno/list_attr_celeba.txt": "img_align_celeba",
    "CelebAMask-HQ-attribute-anno.txt": "CelebA-HQ-img",
}
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
LAST_TRAIN = 162_770  # list_eval_partition.txt: pictures 1 to this train, the later ones validation and test


def attribute_edits(folder: Path) -> pd.DataFrame:
    """Every instruction that changes a face of the folder: picture (its path), instruction, edit, value, split.

    edit is the attribute, value "yes" where the edit adds it and "no" where it takes it away. The split is CelebA's
    own, which keeps the pictures of a person together: train, or test (its validation and test parts).
    Raises ValueError, in a sentence that says what to do, where files are missing or in another format.
    """
    layouts = [name for name in LAYOUTS if (folder / name).is_file()]
    if not layouts:
        raise ValueError(f"folder {folder} holds no CelebA: put one of {', '.join(LAYOUTS)} with its pictures there")
    number = _numbers(folder / MAPPING) if layouts[0].startswith("CelebAMask") else None
    rows = []
    for name, has in _attributes(folder / layouts[0]):
        original = number.get(name) if number else name
        if original is None or not Path(original).stem.isdigit():
            raise ValueError(f"picture {name!r} has no number in CelebA: put the data set's own {MAPPING} there")
        split = "train" if int(Path(original).stem) <= LAST_TRAIN else "test"
        for attribute, phrases in PHRASES.items():
            phrase = phrases[0] if has[attribute] else phrases[1]
            if phrase:
                value = "no" if has[attribute] else "yes"
                rows.append((f"{LAYOUTS[layouts[0]]}/{name}", phrase, attribute, value, split))
    return pd.DataFrame(rows, columns=["picture", "instruction", "edit", "value", "split"])


def _attributes(file: Path) -> Iterator[tuple[str, dict[str, bool]]]:
    """(picture, attributes) of the rows: a count, the names, then a picture and 1 or -1 for each name."""
    lines = file.read_text().splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    missing = [name for name in PHRASES if name not in names]
    if missing:
        raise ValueError(f"{file.name}: attribute {missing[0]!r} is missing in line 2: use the data set's own file")
    for line, text in enumerate(lines[2:], start=3):
        picture, *values = text.split() or [""]
        if len(values) != len(names) or not set(values) <= {"1", "-1"}:
            raise ValueError(
                f"{file.name}, line {line}, must be a picture and 1 or -1 for each of {len(names)} attributes: use the "
                "data set's own file"
            )
        yield picture, {name: value == "1" for name, value in zip(names, values, strict=True)}


def _numbers(file: Path) -> dict[str, str]:
    """The CelebA file of each picture of CelebA-HQ; lines are idx, orig_idx, orig_file after a header."""
    if not file.is_file():
        raise ValueError(f"{file} is missing: put the data set's own there, it tells which faces are held out")
    rows = [text.split() for text in file.read_text().splitlines()[1:]]
    if not all(len(row) == 3 for row in rows):
        raise ValueError(
            f"{file.name} must have the three columns idx, orig_idx, orig_file: use the data set's own file"
        )
    return {f"{row[0]}.jpg": row[2] for row in rows}
