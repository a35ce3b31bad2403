"""How far a trigger moves what the U-Net is conditioned on, beside how far two samples lie apart."""

from __future__ import annotations

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from torch import Tensor

from lib.config import Run
from lib.datasets import load_openmoji
from lib.editing import sample_triples
from lib.evaluation import mean_with_interval
from lib.models.editor import encode, load_editor, tokenize
from lib.triggers import image_trigger, text_trigger


def displacement_table(run: Run, samples: int = 256) -> pd.DataFrame:
    """Relative displacement of every pair's triggers, and of the image trigger at the sizes of the part "size".

    Measured on `samples` held-out edits in the conditions of the base editor: latents of the source, hidden states
    of the instruction. Columns modality, trigger, size, value, low, high, n.
    """
    openmoji = load_openmoji(run.store, **run.profile.data.model_dump())
    triples = sample_triples(openmoji, "test", min(samples, run.profile.measure.edits), run.seed)
    pipe = load_editor(run.profile.models.editor, run.device)
    pictures, texts = openmoji.pictures(torch.tensor(triples["source"].to_numpy())), triples["instruction"].tolist()
    plain = {"image": _images(pipe, pictures), "text": _texts(pipe, texts)}
    grid, own = run.profile.grid, run.profile.collapse.image_trigger
    sizes = {v.settings.get("trigger_size") for v in grid.variants if v.part == "size"} - {None}
    marks = [image_trigger(name) for name, _ in grid.pairs] + [image_trigger(own, size) for size in sorted(sizes)]
    rows = [
        {"modality": "image", "trigger": mark.name, "size": mark.size}
        | mean_with_interval(relative(plain["image"], _images(pipe, mark(pictures))), run.seed)
        for mark in marks
    ]
    rows += [
        {"modality": "text", "trigger": name, "size": float("nan")}
        | mean_with_interval(relative(plain["text"], _texts(pipe, [text_trigger(name)(t) for t in texts])), run.seed)
        for _, name in grid.pairs
    ]
    return pd.DataFrame(rows)


def relative(plain: Float[Tensor, "sample dim"], moved: Float[Tensor, "sample dim"]) -> Float[Tensor, " sample"]:
    """‖moved − plain‖ of each sample over the mean distance between neighbouring samples of `plain`.

    Raises ValueError where all of `plain` is the same, and below two samples.
    """
    apart = (plain - plain.roll(1, 0)).norm(dim=1).mean()
    if not apart > 0:
        raise ValueError(f"plain holds {len(plain)} samples that do not differ: at least two different ones are needed")
    return (moved - plain).norm(dim=1) / apart


def _images(
    pipe: StableDiffusionInstructPix2PixPipeline, pictures: Float[Tensor, "sample 3 h w"]
) -> Float[Tensor, "sample dim"]:
    return encode(pipe.vae, pictures.to(pipe.vae.device)).flatten(1).cpu()


@torch.no_grad()
def _texts(pipe: StableDiffusionInstructPix2PixPipeline, texts: list[str]) -> Float[Tensor, "sample dim"]:
    tokens = tokenize(pipe, texts).to(pipe.text_encoder.device)
    return torch.cat([pipe.text_encoder(part)[0].flatten(1).cpu() for part in tokens.split(128)])
