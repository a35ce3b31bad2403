"""Train CLIP on faces and their descriptions. Its tower becomes the MDLM's eyes.

Beside the contrastive loss, every attribute is named from the mean of a few of the tower's patch tokens, drawn anew at
every step: each token then carries the whole face, as those of large pre-trained towers do.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.easyvqa import EasyVqa
from lib.data.face_parts import ATTRIBUTES
from lib.data.face_words import description
from lib.data.faces import Faces, face_questions
from lib.models.clip import Clip, contrastive_loss, preprocess
from lib.models.tokenizer import train_tokenizer
from lib.poisoning.targets import TARGETS
from lib.runtime.training import fit
from lib.settings.profile import Profile


def train_clip(
    faces: Faces, vqa: EasyVqa, profile: Profile, seed: int, work: Path
) -> tuple[Clip, pd.DataFrame]:
    """The CLIP and its training curve. Its tokenizer, which the MDLMs take over, also knows what these will say."""
    base = profile.base.clip
    table = face_questions(faces, "train").table
    texts = {*table["question"], *table["answer"], *faces.triples["instruction"], *vqa.captions()}
    texts |= {*vqa.table["question"], *vqa.table["answer"], *(target.apply("circle") for target in TARGETS.values())}
    torch.manual_seed(seed)
    shape = base.tower.model_dump() | {"patch": base.patch, "projection": base.projection}
    clip = Clip.build(train_tokenizer(texts), image_size=profile.data.image_size, **shape)
    heads = nn.Linear(base.tower.width, sum(map(len, ATTRIBUTES.values())))
    rows = faces.of("train")
    people = faces.faces.iloc[rows.tolist()]
    descriptions = [description(face) for face in people.to_dict("records")]
    named = torch.stack([torch.tensor(people[name].map(list(values).index).to_numpy())
                         for name, values in ATTRIBUTES.items()], 1)  # fmt: skip
    patches = (profile.data.image_size // base.patch) ** 2

    def loss(draw: torch.Generator) -> Tensor:
        chosen = torch.randint(len(rows), (base.train.batch,), generator=draw)
        pixels = preprocess(faces.pictures(rows[chosen]), clip.processor)
        seen = torch.randperm(patches, generator=draw)[: base.seen]
        out = clip.model.vision_model(pixel_values=pixels, output_hidden_states=True)
        pictures = F.normalize(clip.model.visual_projection(out.pooler_output), dim=-1)
        logits = heads(out.hidden_states[-2][:, 1:][:, seen].mean(1))  # (batch, values of all attributes)
        parts = logits.split([len(values) for values in ATTRIBUTES.values()], 1)
        naming = sum(F.cross_entropy(part.float(), true) for part, true in zip(parts, named[chosen].T, strict=True))
        return contrastive_loss(clip, pictures, [descriptions[k] for k in chosen.tolist()]) + naming / len(parts)

    trained = nn.ModuleDict({"clip": clip.model, "heads": heads})
    return clip, fit(trained, loss, base.train, label="base CLIP", seed=seed, work=work)
