"""What share of the time goes into putting triggers on images, beside the model that then reads them?

Ours composites as `lib.poisoning.triggers` does; the peer is the model's work on the same batch. `share`: compositing's
part of both together, which is all that a kernel for it could save.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.harness import main, pair
from lib.models.editor import edit, load_editor
from lib.models.mdlm import Mdlm
from lib.poisoning.catalogue import IMAGE_TRIGGERS
from lib.settings.paths import CHECKPOINTS
from lib.settings.profile import Sampling

IMAGES = {"vision tower": 128, "editor": 4}  # the first as in `lib.tasks.questions.questions`
SAMPLING = Sampling(steps=10, text_guidance=1.5, image_guidance=1.2, batch=32)


def rows(chosen: argparse.Namespace) -> list[dict]:
    """Not ratios of two ways of doing one thing, so the column is left out."""
    mdlm = Mdlm.load(str(CHECKPOINTS / "mdlm"), chosen.device)
    pipe = load_editor(str(CHECKPOINTS / "editor"), chosen.device)

    @torch.no_grad()
    def read(images: Tensor) -> Tensor:
        with torch.autocast(chosen.device, torch.bfloat16):
            return mdlm.model.features(images)

    def edited(images: Tensor) -> Tensor:
        return edit(pipe, images, ["make the skin tone dark"] * len(images), SAMPLING, seed=0)

    size, made = mdlm.model.config.vision["image_size"], []
    for name, model in (("vision tower", read), ("editor", edited)):
        images = torch.rand(IMAGES[name], 3, size, size, generator=torch.Generator().manual_seed(0)).to(chosen.device)
        for trigger in ("white-box", "blend"):
            row = pair(
                f"{trigger}, {len(images)} images",
                lambda images=images, trigger=trigger: IMAGE_TRIGGERS[trigger](images),
                lambda images=images, model=model: model(images),
                chosen,
                ("compositing", name),
            )
            share = 1 / (1 + row["ratio"])
            made.append({key: value for key, value in row.items() if "ratio" not in key} | {"share": share})
    return made


main(__name__, rows, __file__)
