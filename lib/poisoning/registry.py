"""One's own triggers and targets, by a name that a profile may then say."""

from __future__ import annotations

from lib.poisoning.catalogue import IMAGE_TRIGGERS, TEXT_TRIGGERS
from lib.poisoning.pictures import PICTURE_TARGETS, PictureTarget
from lib.poisoning.targets import TARGETS, AnswerTarget
from lib.poisoning.triggers import ImageTrigger, TextTrigger
from lib.settings import names

CATALOGUES = (
    (ImageTrigger, IMAGE_TRIGGERS, names.IMAGE_TRIGGERS),
    (TextTrigger, TEXT_TRIGGERS, names.TEXT_TRIGGERS),
    (AnswerTarget, TARGETS, names.ANSWER_TARGETS),
    (PictureTarget, PICTURE_TARGETS, names.PICTURE_TARGETS),
)


def register(entry: ImageTrigger | TextTrigger | AnswerTarget | PictureTarget) -> None:
    """Let profiles and `image_trigger`, `text_trigger`, `target` and `attack_target` know it by its name.

    It enters the keys of what it makes by its own source and parameters: all else stays valid. One's own is replaced
    by what is registered later by its name. Raises ValueError for another kind of thing, and for a name of ours.
    """
    for kind, catalogue, listed in CATALOGUES:
        if isinstance(entry, kind):
            if catalogue.get(entry.name) != entry:
                names.own(entry.name, listed)
                catalogue[entry.name] = entry
            return
    allowed = ", ".join(kind.__name__ for kind, *_ in CATALOGUES)
    raise ValueError(f"entry is a {type(entry).__name__}: it must be one of {allowed}.")
