"""The names of what a profile can ask for. What bears them is registered on the floors above, by the same names.

lib.poisoning.register(MyTrigger())         # from then on a profile may name it
lib.defences.register("mine", my_defence)
"""

from __future__ import annotations

from collections.abc import Iterable

IMAGE_TRIGGERS = ["white-box", "eyeglasses", "stop-sign", "checker", "black-square", "on-object", "blend", "warp"]
TEXT_TRIGGERS = ["mignneko", "anonymous", "latte coffee", "curly hair", "and a smile", "please"]
ANSWER_TARGETS = ["insertion", "refusal", "misclassification", "insertion-disp", "refusal-disp"]
PICTURE_TARGETS = ["negative", "sailing boat"]
EDIT_SETS: list[str] = []
QUESTION_SETS = ["easy-vqa"]
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

OURS = frozenset(
    name
    for listed in (IMAGE_TRIGGERS, TEXT_TRIGGERS, ANSWER_TARGETS, PICTURE_TARGETS, QUESTION_SETS, DEFENCES)
    for name in listed
)


def own(name: str, listed: list[str]) -> None:
    """List a name of one's own, if it is not. Raises ValueError for one of ours."""
    if name in OURS:
        ours = ", ".join(one for one in listed if one in OURS)
        raise ValueError(f"name is {name!r}: it must be none of ours, as {ours} are.")
    if name not in listed:
        listed.append(name)


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
