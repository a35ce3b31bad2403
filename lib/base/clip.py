"""Train CLIP on OpenMoji pictures and names, and easy-VQA pictures and captions."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lib.datasets import EasyVqa, OpenMoji
from lib.models.clip import Clip, contrastive_loss
from lib.profile import Profile
from lib.tokenizer import train_tokenizer
from lib.training import fit

SHIFT = 4


def train_clip(
    openmoji: OpenMoji, vqa: EasyVqa, profile: Profile, seed: int, work: Path
) -> tuple[Clip, object]:
    """The CLIP and its training curve. A batch: half emoji, a quarter one emoji in all its tones, a quarter VQA."""
    base = profile.base.clip
    texts = set(openmoji.emoji["name"]) | set(openmoji.triples["instruction"])
    texts |= set(vqa.table["question"]) | set(vqa.table["answer"]) | set(vqa.captions())
    torch.manual_seed(seed)
    clip = Clip.build(base, profile.data.image_size, train_tokenizer(texts))
    names, captions = openmoji.emoji["name"].tolist(), vqa.captions()
    train = torch.tensor((openmoji.emoji["split"] == "train").to_numpy().nonzero()[0])
    tones = openmoji.tone_variants()[train]
    tones = tones[(tones >= 0).all(1)].unique(dim=0)

    def loss(draw: torch.Generator) -> Tensor:
        quarter = base.train.batch // 4
        plain = train[torch.randint(len(train), (2 * quarter,), generator=draw)]
        toned = tones[torch.randint(len(tones), (max(1, quarter // 6),), generator=draw)].flatten()
        emoji = torch.cat([plain, toned])
        shapes = torch.randint(len(vqa.images), (quarter,), generator=draw)
        images = torch.cat([openmoji.pictures(emoji), vqa.pictures(shapes)])
        texts = [names[i] for i in emoji.tolist()] + [captions[i] for i in shapes.tolist()]
        return contrastive_loss(clip, shifted(images, draw), texts)

    curve = fit(clip.model, loss, base.train, label="base CLIP", seed=seed, work=work)
    return clip, curve


def shifted(images: Float[Tensor, "batch 3 h w"], draw: torch.Generator) -> Float[Tensor, "batch 3 h w"]:
    """Each picture moved by up to `SHIFT` pixels each way, its border repeated."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    moves = torch.randint(2 * SHIFT + 1, (len(images), 2), generator=draw).tolist()
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, moves, strict=True)]
    )
