"""Train the MDLM on easy-VQA in seven stages, each of which teaches what the ones before could not.

Captions, what-questions, all questions on frozen features, all with the tower unfrozen, the comparison of the
asked with the seen from text alone, all questions with that comparison beside them, and all with the tower again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lib.data.easyvqa import EasyVqa
from lib.models.clip import Clip
from lib.models.mdlm import Mdlm, masked_diffusion_loss
from lib.runtime.training import Loss, fit_stages
from lib.settings.profile import Profile
from lib.settings.sections import Train
from lib.studies.base_models.mdlm import comparison_loss, fresh_mdlm, summed
from lib.tasks.questions import Questions, answer_loss, questions

CAPTION_PROMPT = "what is in the image?"


def train_vqa_mdlm(
    vqa: EasyVqa, clip: Clip, profile: Profile, seed: int, work: Path
) -> tuple[Mdlm, pd.DataFrame]:
    """The MDLM, its vision tower starting from CLIP's, and the curves of the stages one after another."""
    base = profile.base.vqa
    torch.manual_seed(seed)
    mdlm = fresh_mdlm(clip, base)
    captions = pd.DataFrame(
        {"image": range(len(vqa.images)), "question": CAPTION_PROMPT, "answer": vqa.captions()}
    )
    data = questions(mdlm, vqa, pd.concat([captions.assign(kind="caption"), vqa.table], ignore_index=True))
    kind = data.table["kind"].to_numpy()
    part = {
        "captions": data[torch.from_numpy(kind == "caption")],
        "what": data[torch.from_numpy((kind == "shape") | (kind == "color"))],
        "yes/no": data[torch.from_numpy(kind == "yes/no")],
        "all": data[torch.from_numpy(kind != "caption")],
    }

    def again(settings: Train) -> Callable[[torch.Generator], Tensor]:
        fresh = questions(mdlm, vqa, part["all"].table.reset_index(drop=True))
        yes_no = fresh[torch.from_numpy(fresh.table["kind"].to_numpy() == "yes/no")]
        terms = answer_loss(mdlm, fresh, settings), comparison_loss(mdlm, yes_no, settings, seen=True)
        return partial(summed, terms)

    stages = {
        "captions": partial(answer_loss, mdlm, part["captions"]),
        "what": partial(answer_loss, mdlm, part["what"]),
        "all": partial(answer_loss, mdlm, part["all"]),
        "all, with the tower": partial(tower_loss, mdlm, vqa, part["all"]),
        "comparison": partial(comparison_loss, mdlm, part["yes/no"], seen=False),
        "all, again": again,
        "all, with the tower again": partial(tower_loss, mdlm, vqa, part["all"]),
    }
    curve = fit_stages(mdlm.model, _with_towers(mdlm, stages, base.stages), label="base MDLM", seed=seed, work=work)
    mdlm.model.tower.requires_grad_(False)
    return mdlm, curve


def _with_towers(
    mdlm: Mdlm, stages: Mapping[str, Callable[[Train], Loss]], settings: Sequence[Train]
) -> Iterator[tuple[str, Loss, Train]]:
    """The stages for `fit_stages`: before each, the tower is set to learn where the stage's name says so."""
    for (name, loss), train in zip(stages.items(), settings, strict=True):
        mdlm.model.tower.requires_grad_("with the tower" in name)
        yield name, loss(train), train


def tower_loss(mdlm: Mdlm, vqa: EasyVqa, data: Questions, settings: Train) -> Callable[[torch.Generator], Tensor]:
    """As `answer_loss`, but from the pictures themselves, so that the vision tower learns too."""
    pictures = torch.tensor(data.table["image"].to_numpy())

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data), (settings.batch,), generator=draw)
        vision = mdlm.model.vision_tokens(vqa.pictures(pictures[rows]))
        return masked_diffusion_loss(mdlm.model, vision, data.prompts[rows], data.responses[rows], draw)

    return loss
