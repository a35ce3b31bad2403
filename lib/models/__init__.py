"""Models behind the same calls, tiny or published: CLIP, DINOv2, the editor and the MDLMs, their decoding and adapters.

They map tensors and texts; what is asked of them, poisoned or scored stands in `lib.tasks` and above.
"""

import lazy_loader
import transformers

# diffusers asks for image processors that need torchvision and warns; no model here uses them.
transformers.logging.set_verbosity_error()

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapters": ["adapted", "adapted_unet"],
        "clip": ["Clip"],
        "contract": ["check_editor", "check_mdlm"],
        "decoding": ["Decoded", "decode", "generate"],
        "dino": ["Dino"],
        "editor": ["edit", "load_editor"],
        "loading": ["load_mdlm", "register"],
        "mdlm": ["Mdlm", "MdlmConfig", "MdlmModel"],
    },
)
