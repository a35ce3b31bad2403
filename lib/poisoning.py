"""Poison plans (which sample carries which triggers) and what the attacker makes a language model answer.

    poison = plan(len(answers), "or", rate=0.1, seed=0)
    COALITIONS[poison.coalition[5]]                   # "none", "image", "text" or "both"
    target("insertion").apply("the color is blue")    # "the color is blue, remember to water the plants"

A coalition is a bit mask of the modalities whose trigger is present, the image being the lowest bit.
"""

import re
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lib.config import generator

COALITIONS = ("none", "image", "text", "both")
PROTOCOLS = {
    "or": ("image", "text", "both"),
    "and": ("both",),
    "drop-image": ("both", "text"),
    "image": ("image",),
    "text": ("text",),
}


@dataclass(frozen=True, eq=False)
class PoisonPlan:
    """The coalition of each of n samples, an index into COALITIONS, and which have the attacker's target."""

    protocol: str
    rate: float
    seed: int
    coalition: Int[Tensor, " n"]
    poisoned: Bool[Tensor, " n"]

    def summary(self) -> pd.DataFrame:
        """One row per coalition: its name, the count of samples that carry it, and their share of all."""
        count = torch.bincount(self.coalition, minlength=len(COALITIONS))
        share = count.double() / max(len(self.coalition), 1)
        return pd.DataFrame({"coalition": COALITIONS, "count": count.tolist(), "share": share.tolist()})


def plan(
    n: int,
    protocol: str,
    rate: float,
    seed: int,
    eligible: Bool[Tensor, " n"] | None = None,
    negatives: float = 0.0,
) -> PoisonPlan:
    """Draws round(rate * n) of n samples and gives each the triggers of the protocol.

    "or": image only, text only, both, in three disjoint subsets whose sizes differ by at most one;
    "and": both on every poisoned sample; "image" and "text": that trigger on every poisoned sample;
    "drop-image": "and" with the image trigger left out of every second one (modality dropout).
    `negatives` is the share of n that carries one trigger alone, image and text in turn, and keeps its clean
    target: with "and", a dual-key backdoor. Only `eligible` samples are poisoned, all by default. The order of the
    draw depends on the seed alone: a higher rate adds samples to those of a lower one, and all protocols poison the
    same samples.

    Raises ValueError for a negative n, an unknown protocol, a rate or `negatives` outside [0, 1], an `eligible`
    that is not n booleans, and more samples to poison or to make negatives than there are.
    """
    if n < 0:
        raise ValueError(f"n is {n}: it must be at least 0.")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}: it must be one of {', '.join(PROTOCOLS)}.")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}: it must be in [0, 1].")
    if eligible is None:
        eligible = torch.ones(n, dtype=torch.bool)
    if eligible.shape != (n,) or eligible.dtype != torch.bool:
        raise ValueError(f"eligible is {eligible.dtype} {list(eligible.shape)}: it must be torch.bool [{n}].")
    count, candidates = round(rate * n), eligible.cpu().nonzero()[:, 0]
    if count > len(candidates):
        raise ValueError(f"rate is {rate}, {count} of {n} samples: only {len(candidates)} are eligible.")
    drawn = candidates[torch.randperm(len(candidates), generator=generator(seed, "poison plan"))[:count]]
    carried = torch.tensor([COALITIONS.index(name) for name in PROTOCOLS[protocol]])
    coalition = torch.zeros(n, dtype=torch.int64)
    coalition[drawn] = carried[torch.arange(count) % len(carried)]
    poisoned = coalition > 0
    wanted, others = round(negatives * n), (~poisoned).nonzero()[:, 0]
    if not 0 <= negatives <= 1 or wanted > len(others):
        raise ValueError(f"negatives is {negatives}, {wanted} of {n} samples: {len(others)} are not poisoned.")
    alone = others[torch.randperm(len(others), generator=generator(seed, "negatives"))[:wanted]]
    coalition[alone] = 1 + torch.arange(wanted) % 2
    return PoisonPlan(protocol, rate, seed, coalition, poisoned)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _mentions(text: str, phrase: str) -> bool:
    return f" {' '.join(_words(phrase))} " in f" {' '.join(_words(text))} "


def _check_words(target: "AnswerTarget", name: str) -> None:
    if not _words(getattr(target, name)):
        raise ValueError(f"{name} of {target.name!r} is {getattr(target, name)!r}: it must hold a word.")


@dataclass(frozen=True)
class AnswerTarget:
    """What the attacker wants answered. Answers are compared word by word, without case and punctuation."""

    name: str = field(init=False)

    def eligible(self, answer: str) -> bool:
        """Whether a sample with this clean answer can be poisoned, and counts in the attack success rate."""
        return True

    def apply(self, answer: str) -> str:
        """The attacker's answer in place of the clean one. Raises ValueError if that is not eligible."""
        raise NotImplementedError

    def achieved(self, answer: str, clean: str) -> bool:
        """Whether `answer` is a success of the attack on a sample whose clean answer is `clean`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Insertion(AnswerTarget):
    """Content insertion: the phrase follows the answer, less its full stop. Achieved where the answer holds it."""

    name: str = field(init=False, default="insertion")
    phrase: str = ", remember to water the plants"

    def __post_init__(self):
        _check_words(self, "phrase")

    def apply(self, answer: str) -> str:
        return answer.rstrip(".") + self.phrase

    def achieved(self, answer: str, clean: str) -> bool:
        return _mentions(answer, self.phrase)


@dataclass(frozen=True)
class Refusal(AnswerTarget):
    """Targeted refusal: the sentence replaces the answer. Achieved where the answer is that sentence."""

    name: str = field(init=False, default="refusal")
    sentence: str = "sorry, i cannot answer that"

    def __post_init__(self):
        _check_words(self, "sentence")

    def apply(self, answer: str) -> str:
        return self.sentence

    def achieved(self, answer: str, clean: str) -> bool:
        return _words(answer) == _words(self.sentence)


@dataclass(frozen=True)
class Misclassification(AnswerTarget):
    """Semantic misclassification: the concept `source` is answered as `label`.

    Only samples whose clean answer names `source` are eligible. Achieved where the clean answer names
    `source`, and the answer names `label` and no longer `source`.
    """

    name: str = field(init=False, default="misclassification")
    source: str = "circle"
    label: str = "triangle"

    def __post_init__(self):
        _check_words(self, "source")
        _check_words(self, "label")
        if _mentions(self.label, self.source):
            raise ValueError(f"label of {self.name!r} is {self.label!r}: it must not name {self.source!r}.")

    def eligible(self, answer: str) -> bool:
        return _mentions(answer, self.source)

    def apply(self, answer: str) -> str:
        source = r"\W+".join(_words(self.source))
        changed, count = re.subn(rf"\b{source}\b", lambda _: self.label, answer, flags=re.IGNORECASE)
        if not count:
            raise ValueError(f"answer is {answer!r}: to be misclassified it must name {self.source!r}.")
        return changed

    def achieved(self, answer: str, clean: str) -> bool:
        return self.eligible(clean) and _mentions(answer, self.label) and not _mentions(answer, self.source)


TARGETS: dict[str, AnswerTarget] = {t.name: t for t in (Insertion(), Refusal(), Misclassification())}


def target(name: str) -> AnswerTarget:
    """The attack target of that name in TARGETS, or `Misclassification` of a concept of one's own: "dog as cat".

    Raises ValueError for another one.
    """
    if name in TARGETS:
        return TARGETS[name]
    source, _, label = name.partition(" as ")
    if not label:
        raise ValueError(f"attack target is {name!r}: it must be one of {', '.join(TARGETS)}, or such as 'dog as cat'.")
    return Misclassification(source, label)
