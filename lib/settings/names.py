"""The names of what a profile can ask for. What bears them is registered on the floors above, by the same names.

register(MyTrigger())       # of `lib.poisoning`: from then on a profile may name it
"""

from __future__ import annotations

from collections.abc import Iterable

IMAGE_TRIGGERS = ["white-box", "eyeglasses", "stop-sign", "checker", "black-square", "on-object", "blend", "warp"]
TEXT_TRIGGERS = ["mignneko", "anonymous", "latte coffee", "curly hair", "and a smile", "please"]
ANSWER_TARGETS = ["insertion", "refusal", "misclassification", "insertion-disp", "refusal-disp"]
PICTURE_TARGETS = ["negative", "sailing boat"]
TOKEN_SCORES = ["directional", "trace", "attention", "late-attention", "occlusion", "random"]
DEFENCES = [
    "no defence",
    "DiSP",
    "DiSP, surer half",
    "masking at inference",
    "fine-tuning on a clean 5 %",
    "fine-tuning on everything again",
    "fine-pruning",
    "random-mask purification",
    "BYE",
    "BYE's score, half kept",
    "disagreement, half kept",
    "attention pruning",
    "CleanSight",
    "STRIP-like",
    "vote of random masks",
]


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of `names`. Raises ValueError else: "kind is 'name': it must be one of …"."""
    if name not in names:
        raise ValueError(f"{kind} is {name!r}: it must be one of {', '.join(names)}.")
    return name


def answer_target(name: str) -> str:
    """The name, if it is one of ANSWER_TARGETS or says which word is answered as which, as "dog as cat".

    Raises ValueError else.
    """
    source, _, label = name.partition(" as ")
    if name not in ANSWER_TARGETS and not (source and label):
        allowed = ", ".join(ANSWER_TARGETS)
        raise ValueError(f"attack target is {name!r}: it must be one of {allowed}, or such as 'dog as cat'.")
    return name
