"""How far a trigger moves what the U-Net is conditioned on, beside how far two samples lie apart."""

from __future__ import annotations

import pandas as pd
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from torch import Tensor

from lib.metrics.intervals import mean_with_interval
from lib.models.editor import encode, load_editor, prompt_embeds, tokenize
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.studies.data import edit_data
from lib.studies.run import Run
from lib.tasks.edits import sample_triples, sources


def displacement_table(run: Run, samples: int = 256) -> pd.DataFrame:
    """Relative displacement of every trigger of the study, and of the image trigger at the sizes of the part "size".

    Measured on `samples` held-out edits in the conditions of the base editor: latents of the source, hidden states
    of the instruction, and of these the padding alone, which the U-Net attends to as well and which tells it the whole
    instruction over again. Columns modality ("image", "text", "padding"), trigger, size, value, low, high, n.
    """
    data = edit_data(run)
    triples = sample_triples(data, "test", min(samples, run.profile.measure.edits), run.seed)
    pipe = load_editor(run.profile.models.editor, run.device)
    indices, texts = sources(triples), triples["instruction"].tolist()
    plain = _images(pipe, data.pictures(indices))
    grid, first = run.profile.grid, run.profile.collapse.image_trigger
    sizes = {v.settings.get("trigger_size") for v in grid.variants if v.part == "size"} - {None}
    marks = [image_trigger(name) for name, _ in grid.pairs] + [image_trigger(first, size) for size in sorted(sizes)]
    rows = [
        {"modality": "image", "trigger": mark.name, "size": mark.size}
        | mean_with_interval(relative(plain, _images(pipe, data.pictures(indices, mark))), run.seed)
        for mark in marks
    ]
    phrases = [name for _, name in grid.pairs]
    phrases += [v.settings["text_trigger"] for v in grid.variants if "text_trigger" in v.settings]
    for name in dict.fromkeys(phrases):
        marked = [text_trigger(name)(text) for text in texts]
        tokens = tokenize(pipe, marked)["input_ids"]
        first = int((tokens != pipe.tokenizer.pad_token_id).sum(1).max())  # of padding in all
        states = prompt_embeds(pipe, texts), prompt_embeds(pipe, marked)
        for modality, start in (("text", 0), ("padding", first)):
            moved = relative(*(part[:, start:].flatten(1) for part in states))
            row = {"modality": modality, "trigger": name, "size": float("nan")}
            rows.append(row | mean_with_interval(moved, run.seed))
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
