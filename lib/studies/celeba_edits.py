"""Edit triples of CelebA faces: an editor carries out attribute instructions, its edits are the true ones.

    python -m lib.studies.celeba_edits --celeba FOLDER --out FOLDER --profile paper --device cuda

The clean reference of a poisoned editor is then what the editor did before it was poisoned. The folder is what
`lib.data.load_edits` reads, its parts train and test; it holds faces and inherits CelebA's terms.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from lib.data.celeba import attribute_edits
from lib.data.pictures import FileSource, Pictures, cropped, inner_path
from lib.models.editor import edit, load_editor
from lib.runtime.devices import resolve_device
from lib.runtime.seeds import generator
from lib.runtime.store import write_atomic
from lib.settings.load import load_profile
from lib.settings.profile import Sampling


def draw_edits(celeba: Path, split: str, count: int, seed: int) -> pd.DataFrame:
    """`count` faces of a split with one instruction each, drawn with `seed`. Raises ValueError when there are fewer."""
    edits = attribute_edits(celeba)
    edits = edits[edits["split"] == split]
    order = torch.randperm(len(edits), generator=generator(seed, "celeba", split)).tolist()
    drawn = edits.iloc[order].drop_duplicates("picture")
    if len(drawn) < count:
        raise ValueError(f"edits={count}: the {split} split of {celeba} has {len(drawn)} faces")
    return drawn.iloc[:count].reset_index(drop=True)


def make_edits(
    pipe: StableDiffusionInstructPix2PixPipeline,
    celeba: Path,
    out: Path,
    split: str,
    count: int,
    size: int,
    sampling: Sampling,
    seed: int,
) -> None:
    """Fill `out/<split>` with sources, edits and, at last, `metadata.jsonl`. What a killed run made is kept."""
    drawn = draw_edits(celeba, split, count, seed)
    files = FileSource([celeba / inner_path(path, "picture") for path in drawn["picture"]], celeba)
    faces = Pictures(files, size, cropped)
    folder = out / split
    rows = [
        {"input_image": f"source/{k}.png", "edit_prompt": row.instruction, "edited_image": f"edited/{k}.png"}
        | {"edit": row.edit, "value": row.value, "family": row.picture}
        for k, row in enumerate(drawn.itertuples())
    ]
    for part in tqdm(torch.arange(count).split(sampling.batch), desc=f"edit CelebA, {split}", unit="batch"):
        names = [rows[k] for k in part.tolist()]
        if all((folder / row["edited_image"]).is_file() for row in names):
            continue
        source = faces(part)
        texts = [row["edit_prompt"] for row in names]
        edited = edit(pipe, source.to(pipe.vae.device), texts, sampling, seed + int(part[0]), label="batch").cpu()
        for column, pictures in (("input_image", source), ("edited_image", edited)):
            for row, picture in zip(names, pictures, strict=True):
                write_atomic(folder / row[column], _png(picture))
    write_atomic(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _png(picture: Float[Tensor, "3 h w"]) -> bytes:
    stream = io.BytesIO()
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--celeba", type=Path, required=True, help="folder of CelebA or CelebAMask-HQ")
    parser.add_argument("--out", type=Path, required=True, help="folder that is made")
    parser.add_argument("--profile", default="paper", help="whose editor, sampling, picture size and counts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    profile = load_profile(options.profile)
    settings, size = profile.collapse, profile.data.image_size
    pipe = load_editor(profile.models.editor, resolve_device(options.device))
    for split, count in (("train", settings.edits), ("test", max(settings.samples, settings.watch_samples))):
        make_edits(pipe, options.celeba, options.out, split, count, size, settings.sampling, options.seed)


if __name__ == "__main__":
    main()
