"""How far a trigger moves what the U-Net is conditioned on, and what it then predicts, beside how far two samples
lie apart."""

from __future__ import annotations

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float
from torch import Tensor

from lib.models.editor import encode, load_editor, prompt_embeds
from lib.poisoning.triggers import ImageTrigger, TextTrigger
from lib.runtime.seeds import generator
from lib.studies.attacks.editor import trigger_pair
from lib.studies.cases import Attack
from lib.studies.data import edit_data, watch_split
from lib.studies.run import Run
from lib.tasks.edits import sample_triples, sources

SAMPLES = 128  # validation edits that displacements are measured on


def displacement_table(run: Run, chosen: list[Attack]) -> pd.DataFrame:
    """`displacements` of every attack's triggers in its unattacked editor: columns part, label, and theirs."""
    measured, rows = {}, []
    for attack in chosen:
        case_run = attack.run(run)
        pair = trigger_pair(case_run)
        key = case_run.profile.models.editor, *pair
        if key not in measured:
            measured[key] = displacements(case_run, *pair)
        rows.append({"part": attack.part, "label": attack.label} | measured[key])
    return pd.DataFrame(rows)


def displacements(run: Run, image_trigger: ImageTrigger, text_trigger: TextTrigger) -> dict[str, float]:
    """Mean `relative` movement by each trigger over validation edits, in the run's unattacked editor.

    given_image, given_text: of what the U-Net is given, the source's latent and the instruction's states.
    told_image, told_text: of what the U-Net makes of it at the first denoising step, from one noise for all samples.
    """
    data, pipe = edit_data(run), load_editor(run.profile.models.editor, run.device)
    triples = sample_triples(data, watch_split(run, "edits"), min(SAMPLES, run.profile.measure.edits), run.seed)
    shown, texts = sources(triples), triples["instruction"].tolist()
    text_trigger.check(pipe.tokenizer, texts)
    pictures = data.pictures(shown), data.pictures(shown, image_trigger)
    latents = [encode(pipe.vae, images.to(pipe.vae.device)) for images in pictures]
    states = [prompt_embeds(pipe, said) for said in (texts, [text_trigger(text) for text in texts])]
    plain = _prediction(pipe, latents[0], states[0])
    told = {"image": _prediction(pipe, latents[1], states[0]), "text": _prediction(pipe, latents[0], states[1])}
    given = {"image": latents, "text": states}
    return {f"given_{name}": _mean(*pair) for name, pair in given.items()} | {
        f"told_{name}": _mean(plain, moved) for name, moved in told.items()
    }


def _mean(plain: Tensor, moved: Tensor) -> float:
    return float(relative(plain.flatten(1), moved.flatten(1)).mean())


@torch.no_grad()
def _prediction(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "sample latent lh lw"],
    states: Float[Tensor, "sample length width"],
) -> Float[Tensor, "sample latent lh lw"]:
    """What the U-Net predicts of pure noise, the same for all samples."""
    noise = torch.randn(1, *source.shape[1:], generator=generator(0, "displacement")).to(source.device)
    last = pipe.scheduler.config.num_train_timesteps - 1
    parts = zip(source.split(32), states.split(32), strict=True)
    return torch.cat(
        [
            pipe.unet(torch.cat([noise.expand_as(part), part], 1), last, encoder_hidden_states=text).sample
            for part, text in parts
        ]
    )


def relative(plain: Float[Tensor, "sample dim"], moved: Float[Tensor, "sample dim"]) -> Float[Tensor, " sample"]:
    """‖moved − plain‖ of each sample over the mean distance between neighbouring samples of `plain`.

    Raises ValueError where all of `plain` is the same, and below two samples.
    """
    apart = (plain - plain.roll(1, 0)).norm(dim=1).mean()
    if not apart > 0:
        raise ValueError(f"plain holds {len(plain)} samples that do not differ: at least two different ones are needed")
    return (moved - plain).norm(dim=1) / apart
