"""What an attacker adds to data: triggers, targets, and the plan of which sample carries them.

    register(MyTrigger())       # from then on a profile, `image_trigger` and the studies know it by its name

No training and no model: attacks are the studies' (`lib.studies.attacks`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalogue": ["IMAGE_TRIGGERS", "TEXT_TRIGGERS", "image_trigger", "text_trigger"],
        "pictures": ["PICTURE_TARGETS", "PictureTarget", "attack_target"],
        "plans": ["COALITIONS", "PROTOCOLS", "PoisonPlan", "plan"],
        "registry": ["register"],
        "targets": ["TARGETS", "AnswerTarget", "target"],
        "triggers": ["Composited", "ImageTrigger", "Sticker", "TextTrigger"],
    },
)
