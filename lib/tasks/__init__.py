"""What models are asked: questions and edits as samples, poisoned or not, answered, edited and learnt from.

No scores of the outcome (`lib.metrics`), no defence (`lib.defences`), nothing cached.
"""

import lazy_loader

# `questions` is the function, not the module, whichever is asked for first: lazy_loader sees to it.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "edits": ["EditLatents", "edit_latents", "edits_under_coalitions", "latent_loss", "poisoned_latents"],
        "fine_tuning": ["fine_tune"],
        "likelihood": ["likelihood_masks", "mean_log_probability"],
        "questions": ["Questions", "answer", "answer_loss", "questions", "respond", "respond_masked"],
    },
)
