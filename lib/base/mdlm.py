"""Train the MDLM on easy-VQA in seven stages, each of which teaches what the ones before could not.

Captions, what-questions, all questions on frozen features, all with the tower unfrozen, the comparison of the
asked with the seen from text alone, all questions with that comparison beside them, and all with the tower again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.answering import Questions, answer_loss, questions
from lib.datasets import EasyVqa
from lib.models.clip import Clip
from lib.models.mdlm import Mdlm, MdlmConfig, MdlmModel, masked_diffusion_loss
from lib.profile import MdlmShape, Profile, Train
from lib.training import fit

CAPTION_PROMPT = "what is in the image?"


def train_mdlm(
    vqa: EasyVqa, clip: Clip, profile: Profile, seed: int, work: Path
) -> tuple[Mdlm, pd.DataFrame]:
    """The MDLM, its vision tower starting from CLIP's, and the curves of the stages one after another."""
    base = profile.base.mdlm
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
    return mdlm, train_stages(mdlm, stages, base.stages, "base MDLM", seed, work)


def train_stages(
    mdlm: Mdlm,
    stages: Mapping[str, Callable[[Train], Callable[[torch.Generator], Tensor]]],
    settings: Sequence[Train],
    label: str,
    seed: int,
    work: Path,
) -> pd.DataFrame:
    """Train on one loss after another, the tower where a stage's name says so; the curves, with the column stage."""
    curves = []
    for (name, loss), train in zip(stages.items(), settings, strict=True):
        mdlm.model.tower.requires_grad_("with the tower" in name)
        folder = work / name
        folder.mkdir(exist_ok=True, parents=True)
        curve = fit(mdlm.model, loss(train), train, label=f"{label}, {name}", seed=seed, work=folder)
        curves.append(curve.assign(stage=name))
    mdlm.model.tower.requires_grad_(False)
    return pd.concat(curves, ignore_index=True)


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
        attention=settings.attention,
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    mdlm = Mdlm(MdlmModel(config), tokenizer)
    mdlm.model.tower.load_state_dict(clip.model.vision_model.state_dict())
    return mdlm


def tower_loss(mdlm: Mdlm, vqa: EasyVqa, data: Questions, settings: Train) -> Callable[[torch.Generator], Tensor]:
    """As `answer_loss`, but from the pictures themselves, so that the vision tower learns too."""
    pictures = torch.tensor(data.table["image"].to_numpy())

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data), (settings.batch,), generator=draw)
        vision = mdlm.model.vision_tokens(vqa.pictures(pictures[rows]))
        return masked_diffusion_loss(mdlm.model, vision, data.prompts[rows], data.responses[rows], draw)

    return loss


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


def summed(terms: tuple[Callable[[torch.Generator], Tensor], ...], draw: torch.Generator) -> Tensor:
    """The sum of several losses, each on a batch of its own."""
    return sum(term(draw) for term in terms)
