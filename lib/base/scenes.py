"""Train the MDLM of OpenMoji scenes in four stages: vision tokens that lie near the words for what they show, the
decoder on all questions, on those that need a thing to be found by its name, and on all again.

Without the first stage, 3,100 steps of the others found what lies at a place (0.73 of the answers right), and hardly
where a named thing lies (0.24).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.answering import answer_loss, questions
from lib.base.mdlm import fresh_mdlm, train_stages
from lib.datasets import Scenes
from lib.datasets.scenes import NAMES, PLACES, SPOKEN
from lib.models.clip import Clip
from lib.models.mdlm import Mdlm
from lib.profile import Profile, Train


def train_scenes_mdlm(
    scenes: Scenes, clip: Clip, profile: Profile, seed: int, work: Path
) -> tuple[Mdlm, pd.DataFrame]:
    """The MDLM, its vision tower starting from CLIP's, and the curves of the stages one after another."""
    base = profile.base.scenes
    torch.manual_seed(seed)
    mdlm = fresh_mdlm(clip, base)
    found = scenes.table[scenes.table["kind"].isin(["position", "tone"])].reset_index(drop=True)

    def asked(table: pd.DataFrame) -> Callable[[Train], Callable[[torch.Generator], Tensor]]:
        return lambda train: answer_loss(mdlm, questions(mdlm, scenes, table), train)

    stages = {
        "words, with the tower": partial(place_loss, mdlm, scenes),
        "all": asked(scenes.table),
        "position and tone": asked(found),
        "all, again": asked(scenes.table),
    }
    return mdlm, train_stages(mdlm, stages, base.stages, "base MDLM of scenes", seed, work)


def place_loss(mdlm: Mdlm, scenes: Scenes, settings: Train) -> Callable[[torch.Generator], Tensor]:
    """Cross-entropy of the thing and the tone (or their absence) at each of `PLACES`.

    Logits are products of the mean of a place's vision tokens with the words' embeddings, over √width.
    """
    model, side = mdlm.model, round(len(PLACES) ** 0.5)
    words = mdlm.tokenizer(["nothing", *NAMES, *SPOKEN], add_special_tokens=False)
    ids = [torch.tensor(row) for row in words["input_ids"]]

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(scenes.images), (settings.batch,), generator=draw)
        vision = model.vision_tokens(scenes.pictures(rows))
        grid = round(vision.shape[1] ** 0.5)
        patches = vision.unflatten(1, (side, grid // side, side, grid // side))
        named = torch.stack([model.embedding(row).mean(0) for row in ids])
        logits = patches.mean((2, 4)).flatten(0, 2).float() @ named.T / named.shape[1] ** 0.5
        nothing, thing, tone = logits.split([1, len(NAMES), len(SPOKEN)], -1)
        return sum(
            F.cross_entropy(torch.cat([nothing, found], -1), true[rows].flatten() + 1)
            for found, true in ((thing, scenes.things), (tone, scenes.tones))
        )

    return loss
