"""How things run and are kept: seeds, devices, processes, the training loop, the store and its keys.

Nothing here knows what is trained or kept.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "keys": ["code_digest", "registered"],
        "seeds": ["generator"],
        "store": ["Store"],
        "training": ["fit", "fit_stages"],
    },
)
