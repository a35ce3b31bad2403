"""Which part of an input carries a model's output: scores of vision tokens, words, patches, and masks of the highest.

What a defence makes of them stands in `lib.defences`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "by_name": ["TOKEN_SCORES", "layer_attention"],
        "edits": ["condition_saliency", "mask_condition"],
        "jacobian": ["fisher_jacobian"],
        "masking": ["mask_top", "random_scores"],
        "rivals": ["attention_by_layer", "attention_received", "late_attention", "occlusion", "response_attention"],
        "words": ["joint_fisher_jacobian", "joint_masks", "joint_saliency", "mask_top_of_all"],
    },
)
