"""Does DiSP carry over to the editor? Mask what matters most of picture or instruction, edit the training set again,
fine-tune on these edits.

    purified_editor(run, "and", "picture")

The masking stands in `lib.saliency.edits`, the edits under it in `lib.defences.edit_purification`; what they come to is
in `lib.studies.disp.editor_tables`.
"""

from __future__ import annotations

from diffusers import StableDiffusionInstructPix2PixPipeline

from lib.defences.edit_purification import edit_masked
from lib.models.editor import encode
from lib.runtime.keys import code_digest
from lib.settings.sections import Train
from lib.studies.attacks.editor import editor_spec, poisoned_editor, unet_tuning, with_unet
from lib.studies.checkpoints import FineTuning, fine_tuned
from lib.studies.collapse.detection import training_samples
from lib.studies.run import Run
from lib.tasks.edits import edit_latents, latent_loss

# Chosen before any of this was measured.
RATIO = 0.06  # four of 64 patches masked where the training set is edited again
EDITS = 1500  # of the poisoned training set edited again


def purified_editor(run: Run, protocol: str, way: str) -> StableDiffusionInstructPix2PixPipeline:
    """The protocol's compromised editor fine-tuned on its own edits of masked training samples, from the store."""
    spec, text = purified_spec(run, protocol, way), {"title": "Purified editor"}
    text["told"] = "It was purified as DiSP purifies a language model."
    begin, label = (lambda: _purification(run, protocol, way)), f"purified editor, {way}"
    return with_unet(run, fine_tuned(run, "purified-editor", spec, begin, fine_tuning(run), label, **text))


def _purification(run: Run, protocol: str, way: str) -> FineTuning:
    settings = run.profile.collapse
    samples, _ = training_samples(run, protocol, min(EDITS, settings.edits))
    pipe, _ = poisoned_editor(run, protocol)
    edited = edit_masked(pipe, samples.source, samples.instructions, way, RATIO, settings.sampling, run.seed)
    latents = [encode(pipe.vae, pictures.to(pipe.vae.device)).cpu() for pictures in (samples.source, edited)]
    data = edit_latents(pipe, *latents, samples.instructions)
    loss = latent_loss(pipe, data, fine_tuning(run), settings.condition_dropout)
    facts = {"protocol": protocol, "masked": way, "ratio": RATIO, "edits": len(edited), "seed": run.seed}
    return unet_tuning(run, pipe, loss, facts)


def fine_tuning(run: Run) -> Train:
    """As the attack's own, for three passes over the edits, at a third of its learning rate."""
    settings = run.profile.collapse.train
    steps = max(1, 3 * min(EDITS, run.profile.collapse.edits) // settings.batch)
    return settings.model_copy(update={"steps": steps, "lr": settings.lr / 3, "warmup": 0, "watch_every": None})


def purified_spec(run: Run, protocol: str, way: str) -> dict:
    """What a purified editor depends on."""
    code = [code_digest(__name__), code_digest("lib.defences.edit_purification")]
    return editor_spec(run, protocol) | {"masked": way, "purification": code}
