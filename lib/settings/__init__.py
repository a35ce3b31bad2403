"""What can be set: profiles, their sections and names, and where files lie. It imports nothing else of lib."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"load": ["load_profile", "runnable_profile"], "profile": ["Profile"], "sections": ["Lora", "Train"]},
)
