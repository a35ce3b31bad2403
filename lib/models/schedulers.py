"""What denoises an edit: diffusers' schedulers, by the names that `lib.settings.sections.Sampling` has for them."""

from __future__ import annotations

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
)

SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),  # latents do not lie in [-1, 1]
    "euler": (EulerDiscreteScheduler, {}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


def scheduled(
    pipe: StableDiffusionInstructPix2PixPipeline, scheduler: str | None
) -> StableDiffusionInstructPix2PixPipeline:
    """The same models under one of SCHEDULERS, with the noise of the pipeline's own; None: the pipeline as it is."""
    if scheduler is None:
        return pipe
    made, settings = SCHEDULERS[scheduler]
    parts = pipe.components | {"scheduler": made.from_config(pipe.scheduler.config, **settings)}
    other = type(pipe)(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other
