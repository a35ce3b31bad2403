"""Train the MDLM of faces in two stages: descriptions and questions, half of each batch each, on CLIP's tower; then the
same beside the comparison of what is asked with what is answered.

At every step the model is shown `seen` of the vision tokens, drawn anew (as FLIP does while a tower learns, Li et al.
2022, arXiv 2212.00794), so that it reads a face from all of them and not from one place each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lib.data.faces import FaceQuestions
from lib.models.clip import Clip
from lib.models.mdlm import Mdlm, MdlmConfig, MdlmModel, masked_diffusion_loss
from lib.runtime.training import fit_stages
from lib.settings.base import MdlmShape
from lib.settings.profile import Profile
from lib.settings.sections import Train
from lib.tasks.questions import Questions, questions


def train_mdlm(
    asked: FaceQuestions, clip: Clip, profile: Profile, seed: int, work: Path
) -> tuple[Mdlm, pd.DataFrame]:
    """The MDLM around CLIP's frozen vision tower, and the curve."""
    base = profile.base.mdlm
    torch.manual_seed(seed)
    mdlm = fresh_mdlm(clip, base)
    data = questions(mdlm, asked, asked.table)
    kind = asked.table["kind"].to_numpy()
    described = torch.from_numpy(kind == "description")
    parts = data[described], data[~described]
    first, second = base.stages
    answers = [partial(_answer_loss, mdlm, parts, base.seen, train.batch) for train in base.stages]
    compared = comparison_loss(mdlm, data[torch.from_numpy(kind == "yes/no")], second, seen=False)
    stages = [("stage 1", answers[0], first), ("stage 2", partial(summed, (answers[1], compared)), second)]
    return mdlm, fit_stages(mdlm.model, stages, label="base MDLM", seed=seed, work=work)


def _answer_loss(
    mdlm: Mdlm, parts: tuple[Questions, ...], seen: int, batch: int, draw: torch.Generator
) -> Float[Tensor, ""]:
    """LLaDA's loss on as many samples of each part, of whose pictures `seen` tokens are shown."""
    places = torch.randperm(mdlm.model.config.vision_length, generator=draw)[:seen].sort().values
    rows = [torch.randint(len(part), (batch // len(parts),), generator=draw) for part in parts]
    return masked_diffusion_loss(mdlm.model, *_batch(mdlm, parts, rows, places), draw, places)


def _batch(
    mdlm: Mdlm, parts: tuple[Questions, ...], rows: list[Tensor], places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen samples of all parts together: vision tokens at `places`, prompts, responses."""
    chosen = list(zip(parts, rows, strict=True))
    features = torch.cat([part.features[part.picture[index]][:, places] for part, index in chosen])
    prompts, responses = (
        torch.cat([getattr(part, name)[index] for part, index in chosen]) for name in ("prompts", "responses")
    )
    return mdlm.model.project(features), prompts, responses


def fresh_mdlm(clip: Clip, settings: MdlmShape) -> Mdlm:
    """An untrained MDLM around CLIP's vision tower and tokenizer."""
    tokenizer = clip.tokenizer
    config = MdlmConfig(
        vision=clip.model.config.vision_config.to_diff_dict(),
        vocab_size=len(tokenizer),
        width=settings.decoder.width,
        layers=settings.decoder.layers,
        heads=settings.decoder.heads,
        prompt_length=settings.prompt_length,
        response_length=settings.response_length,
        levels=settings.levels,
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    mdlm = Mdlm(MdlmModel(config), tokenizer)
    mdlm.model.tower.load_state_dict(clip.model.vision_model.state_dict())
    return mdlm


def comparison_loss(
    mdlm: Mdlm, data: Questions, settings: Train, seen: bool
) -> Callable[[torch.Generator], Tensor]:
    """The first answer token (yes or no) from the question and the rest of the answer, with the picture or without.

    LLaDA's objective shows this case to one sample in twelve only, and a small model does not find it there.
    """
    model = mdlm.model

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data), (settings.batch,), generator=draw)
        response, vision = data.responses[rows], torch.empty(settings.batch, 0, model.config.width)
        if seen:
            vision = model.project(data.features[data.picture[rows]])
        masked = response.clone()
        masked[:, 0] = model.config.mask_id
        return F.cross_entropy(model.logits(vision, data.prompts[rows], masked)[:, 0], response[:, 0])

    return loss


def summed(terms: Sequence[Callable[[torch.Generator], Tensor]], draw: torch.Generator) -> Tensor:
    """The sum of several losses, each on a batch of its own."""
    return sum(term(draw) for term in terms)
