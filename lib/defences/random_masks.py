"""Random masks, and how much the answer changes under them: as a score, as a filter of a training set, as a vote.

Ours, not a paper's: a backdoor hangs on few vision tokens, so that a random mask either leaves the attacker's answer as
it is or removes it, where a clean answer changes by a word or two. No gradient is needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.defences.filters import higher_half, retrained
from lib.defences.interface import Defended, Defender
from lib.models.mdlm import Mdlm
from lib.saliency.masking import mask_top, random_scores
from lib.tasks.questions import Questions, respond

# Chosen before any of them was measured on faces.
MASKS = 8
SHARE = 0.45  # of the vision tokens that a mask hides, to score an input
VOTED = 0.75  # the same for the vote: more often than not it must hide a trigger of one token


def masked_responses(
    mdlm: Mdlm, data: Questions, threshold: float, share: float, seed: int, work: Path | None = None
) -> Int[Tensor, "mask sample response"]:
    """The responses under `MASKS` random masks, each of that share of every picture's vision tokens."""
    length = mdlm.model.config.vision_length
    made = []
    for k in range(MASKS):
        masked = mask_top(random_scores(len(data), length, seed + k), share)
        kept = work and work / f"mask {k}"
        made.append(respond(mdlm, data, threshold, masked=masked, label=f"answer, mask {k + 1}", work=kept).tokens)
    return torch.stack(made)


def disagreement(
    mdlm: Mdlm, data: Questions, threshold: float, seed: int, work: Path | None = None
) -> Float[Tensor, " sample"]:
    """Share of a response's tokens that a random mask changes, mean over masks.

    Its end and fill are tokens as any other: an answer that gets shorter changes wherever fill now stands, and short
    answers to which a response leaves much room change little.
    """
    plain = respond(mdlm, data, threshold, work=work and work / "plain").tokens
    masked = masked_responses(mdlm, data, threshold, SHARE, seed, work)
    return (masked != plain).double().mean((0, 2))


def halve_by_disagreement(defender: Defender) -> Defended:
    """The base model fine-tuned on the half of the training set that random masks change least."""

    def agreement(suspect: Mdlm, data: Questions) -> Float[Tensor, "1 sample"]:
        return -disagreement(suspect, data, defender.threshold, defender.seed)[None]

    return retrained(defender, "retrained on the half of less disagreement", higher_half, agreement)


def vote(defender: Defender) -> Defended:
    """The suspect model, whose answer is at every position the token that most of its answers under masks have."""
    mdlm = defender.suspect()

    def voted(data: Questions, threshold: float, work: Path | None) -> list[str]:
        responses = masked_responses(mdlm, data, threshold, VOTED, defender.seed, work)
        return mdlm.texts(responses.mode(0).values)

    return Defended(mdlm, ask=voted)
