"""CleanSight (Zhang et al. 2026, arXiv 2603.12989) by the rule of its authors' code.

Theirs (`zhangzf01/cleansight` at 23567b95e5), of a decoder of 32 layers with 576 vision tokens, on the attention of the
prompt's last token, which makes the answer's first one:

1. For every head of layers 10 to 24, attention to the picture over attention to what follows it.
2. Of some 200 clean samples, mean and standard deviation of each of these ratios. A sample's score is the Euclidean
   norm of its standardised ratios; poisoned is one above the 99th percentile of the clean ones' scores.
3. In a poisoned one pruned are the vision tokens that get more than 0.02 of some head's attention in the last of these
   layers: from that layer on no position attends to them, at every step of the answer. Others are answered as ever.

What differs here, since a masked-diffusion model has no first token: attention is that of the response's positions at
the first denoising step, where all are masked, mean over them; their own keys, which no prompt of theirs holds, count
for neither side. Attention is bidirectional, so that vision tokens and the response see one another before the pruning.
Layers are those at the same shares of the depth, the threshold 0.02 · 576 = 11.52 times an even share of the vision
tokens; at their sizes both are theirs. The clean samples are the defender's clean share.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.defences.interface import CLEAN_DATA, Defended, Defender
from lib.models.llada import IMAGE
from lib.models.mdlm import Mdlm
from lib.models.unseen import Unseen
from lib.saliency.rivals import response_attention
from lib.tasks.questions import Questions, answer

FIRST, LAST, DEPTH = 10, 24, 32  # layers whose attention is watched, of how many
PRUNED = 0.02 * 576  # even shares of the vision tokens
PERCENTILE = 0.99
NO_SPREAD, NO_TEXT = 1e-8, 1e-12  # added where the authors divide by a standard deviation and by attention to text


class Watched(NamedTuple):
    """Of every sample, attention to the picture over that to the text, head by head of the watched layers, and what
    each vision token gets in the last of these layers, at the head where it gets most."""

    ratios: Float[Tensor, "sample head"]
    most: Float[Tensor, "sample vision"]


class Normal(NamedTuple):
    """Mean and standard deviation of clean samples' ratios, and the score above which a sample counts as poisoned."""

    mean: Float[Tensor, " head"]
    deviation: Float[Tensor, " head"]
    threshold: float

    def distance(self, ratios: Float[Tensor, "sample head"]) -> Float[Tensor, " sample"]:
        """CleanSight's score: the norm of standardised ratios."""
        return ((ratios - self.mean) / (self.deviation + NO_SPREAD)).norm(dim=1)


def cleansight(defender: Defender) -> Defended:
    """The suspect model, whose later layers do not see the vision tokens that steal attention in flagged questions."""
    mdlm, batch = defender.suspect(), defender.batch
    normal = calibrated(watch(mdlm, defender.clean_share(mdlm), batch).ratios)
    layer = watched_layers(len(mdlm.model.decoder_layers))[-1]

    def ask(data: Questions, threshold: float, work: Path | None) -> list[str]:
        seen = watch(mdlm, data, batch)
        poisoned = normal.distance(seen.ratios) > normal.threshold
        return answer(mdlm, data, threshold, unseen=Unseen(layer, thieves(seen.most) & poisoned[:, None]), work=work)

    return Defended(mdlm, CLEAN_DATA, ask=ask)


def watched_layers(depth: int) -> range:
    """Layers 10 to 24 of 32, at the same shares of `depth` layers, rounded down."""
    return range(FIRST * depth // DEPTH, LAST * depth // DEPTH + 1)


@torch.no_grad()
def watch(mdlm: Mdlm, data: Questions, batch: int) -> Watched:
    """What CleanSight looks at, of all samples, on the CPU in float64."""
    model, parts = mdlm.model, []
    layers = watched_layers(len(model.decoder_layers))
    for part in tqdm(torch.arange(len(data)).split(batch), desc="attention", unit="batch", leave=False):
        vision = model.project(data.features[data.picture[part]].to(model.device))
        prompts = data.prompts[part].to(model.device)
        maps = response_attention(model, vision, prompts, lambda weight: weight.mean(2).double().cpu())
        place = prompts.cpu() == IMAGE  # tokens before it are the system's
        text = (place.cumsum(1) > 0) | ~place.any(1, keepdim=True)
        ratios = [attention_ratio(maps[k], vision.shape[1], text) for k in layers]
        parts.append((torch.cat(ratios, 1), maps[layers[-1]][..., : vision.shape[1]].amax(1)))
    return Watched(*map(torch.cat, zip(*parts, strict=True)))


def attention_ratio(
    weight: Float[Tensor, "sample head position"], vision: int, text: Bool[Tensor, "sample prompt"]
) -> Float[Tensor, "sample head"]:
    """Attention to the `vision` first positions over that to the positions behind them which are `text`."""
    words = weight[..., vision : vision + text.shape[1]] * text[:, None]
    return weight[..., :vision].sum(2) / (words.sum(2) + NO_TEXT)


def calibrated(ratios: Float[Tensor, "sample head"]) -> Normal:
    """What is normal, by clean samples' ratios. Raises ValueError where there is no sample."""
    if not len(ratios):
        raise ValueError("clean_share has no samples: CleanSight needs one at least to tell what is normal")
    normal = Normal(ratios.mean(0), ratios.std(0, correction=0), 0.0)
    return normal._replace(threshold=float(normal.distance(ratios).quantile(PERCENTILE)))


def thieves(most: Float[Tensor, "sample vision"]) -> Bool[Tensor, "sample vision"]:
    """Vision tokens to be pruned, were their sample poisoned."""
    return most > PRUNED / most.shape[1]
