"""Pictures read when they are asked for: from files, or from the cells of parquet files.

At 512 × 512 a data set does not fit into memory, so that only the pictures of a batch are decoded at a time. A trigger
is laid on the picture as it is decoded, in whole bytes, and then made square and resized with it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from lib.data.interface import TriggerMasks
from lib.poisoning.triggers import ImageTrigger

GREY = (127, 127, 127)
WHITE = (255, 255, 255)  # what stands behind transparent parts
MOST_PIXELS = 89_478_485  # PIL's own limit, from which it warns of a decompression bomb
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")  # none that runs another program
FAINT = 0.1  # of a trigger's opacity: less is what the filter of resizing smears around it


@runtime_checkable
class Source(Protocol):
    """Pictures in a fixed order, decoded one at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class FileSource:
    """One file a picture, all below `root`, if that is given, wherever links lead.

    Raises ValueError, naming the first, where files are missing, no files, or outside; each folder is listed once.
    """

    paths: Sequence[Path]
    root: Path | None = None

    def __post_init__(self) -> None:
        files, links = set(), set()
        for folder in {path.parent for path in self.paths}:
            for entry in os.scandir(folder) if folder.is_dir() else ():
                if entry.is_file():  # a pipe would be waited for
                    files.add(folder / entry.name)
                if entry.is_symlink():
                    links.add(folder / entry.name)
        if self.root:
            inner = {path.parent for path in self.paths} | {path for path in self.paths if path in links & files}
            _check_inside(inner, self.root)
        missing = [path for path in self.paths if path not in files]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.paths)} pictures are missing, the first is {_plain(missing[0])}: copy "
                "them there, or name the folder that the paths are relative to"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        """Raises ValueError for a file that is no picture."""
        return opened(self.paths[index], self.paths[index])


@dataclass(frozen=True)
class Pictures:
    """The pictures of a source, called with indices: floats in [0, 1]; with a trigger all of them carry it.

    `square` makes a picture square: `cropped` or `padded`. What `cropped` cuts off, of the trigger too, is not seen:
    an attacker who knows the trainer's loader lays it where it stays.
    """

    source: Source
    size: int
    square: Callable[[Image.Image], Image.Image]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} of pictures must be a number of pixels from 1")

    def __len__(self) -> int:
        return len(self.source)

    def __call__(
        self, indices: Int[Tensor, " batch"], trigger: ImageTrigger | None = None
    ) -> Float[Tensor, "batch 3 size size"]:
        return self.read(indices, trigger).float() / 255

    def read(
        self, indices: Int[Tensor, " batch"], trigger: ImageTrigger | None = None
    ) -> UInt8[Tensor, "batch 3 size size"]:
        """Pictures in 8 bits a channel, antialiased where they are made smaller.

        Raises ValueError for a picture that cannot be read or in which nothing of the trigger would be left, and
        IndexError for an index that is out of range.
        """
        out = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        for place, index in enumerate(indices.tolist()):
            image = self._decoded(index)
            if trigger is not None:
                loaded_mask(trigger, image.size, self.square, self.size)
                image = triggered(image, trigger)
            out[place] = torch.from_numpy(pixels(self.square(image), self.size))
        return out

    def trigger_masks(self, indices: Int[Tensor, " batch"], trigger: ImageTrigger) -> TriggerMasks:
        """One mask for all pictures of a size. Raises ValueError for a picture in which nothing of it would be left."""
        sizes = [self._decoded(index).size for index in indices.tolist()]
        distinct = list(dict.fromkeys(sizes))
        masks = [loaded_mask(trigger, size, self.square, self.size) for size in distinct]
        which = torch.tensor([distinct.index(size) for size in sizes], dtype=torch.long)
        return TriggerMasks(torch.stack(masks) if masks else torch.empty(0, self.size, self.size), which)

    def _decoded(self, index: int) -> Image.Image:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} is out of range: there are {len(self)}")
        return self.source[index]


def triggered(image: Image.Image, trigger: ImageTrigger) -> Image.Image:
    """The picture that an attacker puts in the place of the file: in RGB, in its own size."""
    clean = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    return Image.fromarray((trigger(clean) * 255).round().byte().permute(1, 2, 0).numpy())


@lru_cache(maxsize=64)
def loaded_mask(
    trigger: ImageTrigger, size: tuple[int, int], square: Callable[[Image.Image], Image.Image], side: int
) -> Float[Tensor, "side side"]:
    """How much of every pixel is the trigger's in a loaded picture that has `size` (width, height) on disk.

    The difference of two pictures that are loaded alike: black, and with the trigger's mask in white. Raises ValueError
    where it is all below `FAINT`: the trigger lies where the picture is cropped, or vanishes where it is made smaller.
    """
    width, height = size
    mask = trigger.mask(height, width)
    black, white = (
        torch.from_numpy(pixels(square(Image.fromarray(shown)), side)[0]).float()
        for shown in (np.zeros((height, width), np.uint8), (mask / mask.max() * 255).round().byte().numpy())
    )
    seen = ((white - black) / 255).clamp(min=0)
    if not bool((seen > FAINT).any()):
        raise ValueError(
            f"image trigger {trigger.name!r} leaves nothing in a picture of {height}×{width} pixels that is "
            f"{square.__name__} to a square and resized to {side}×{side}: lay it nearer the middle, or make it larger"
        )
    return torch.where(seen > FAINT, seen, 0.0) * mask.max()


def pixels(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The RGB values of a picture at `size` × `size`, Lanczos-filtered (antialiased) where that changes its size."""
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1).copy()


def cropped(image: Image.Image) -> Image.Image:
    """The largest square in the picture's middle: for edits, whose subject is there."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def padded(image: Image.Image) -> Image.Image:
    """The whole picture on a grey square: for questions, which may be about any part of it (LLaVA 1.5's `pad`)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    return square


def inner_path(path: object, field: str) -> str:
    """The path, which must be a text and relative, and not lead upwards; else ValueError naming `field`."""
    if not isinstance(path, str) or not path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{field}={path!r} must be a path below the folder of the pictures")
    return path


def _plain(path: Path | str) -> str:
    """The path in one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _check_inside(paths: set[Path], root: Path) -> None:
    """Raises ValueError for a path that a link leads out of `root`; the hub's files are links into its own cache."""
    roots = [root.resolve()] + ([root.resolve().parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    for path in sorted(paths):
        if not any(path.resolve().is_relative_to(allowed) for allowed in roots):
            out = f"picture {_plain(path)} is a link out of {root}"
            raise ValueError(f"{out}: copy it there, or name the pictures' own folder")


def opened(file: Path | io.BytesIO, name: Path | str) -> Image.Image:
    """The decoded picture in RGB, 8 bits a channel: turned as its EXIF tag says, white behind what is transparent.

    Grey of 16 bits is scaled. Raises ValueError for what PIL cannot read, pictures of more than `MOST_PIXELS`, and
    values of which the file does not say which is white (float or 32 bits).
    """
    try:
        image = Image.open(file, formats=FORMATS)
        if (count := image.width * image.height) > MOST_PIXELS:
            raise ValueError(f"it has {count} pixels, at most {MOST_PIXELS} are allowed")
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL's readers raise whatever a damaged file makes of them
        raise ValueError(f"picture {_plain(name)} cannot be read ({error}): replace it or leave its row out") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError(f"its values are of PIL's mode {image.mode}: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Photographs:
    """`pictures(indices, trigger)` gives pictures as floats in [0, 1], `[batch, 3, size, size]`."""

    pictures: Pictures

    def trigger_masks(self, indices: Int[Tensor, " batch"], trigger: ImageTrigger) -> TriggerMasks:
        """See `Pictures.trigger_masks`."""
        return self.pictures.trigger_masks(indices, trigger)


@dataclass(frozen=True)
class PhotoQuestions(Photographs):
    """One split. `table` has one row a question: image (its picture), question, answer, kind, and a loader's own."""

    table: pd.DataFrame
