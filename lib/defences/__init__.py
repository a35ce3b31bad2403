"""Mechanisms on a compromised model and samples, one file an idea; every defence is `defence(Defender(…)) -> Defended`.

Scores of what matters stand in `lib.saliency`; what is cached and measured for a paper in `lib.studies`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attention_stealing": ["cleansight"],
        "edit_purification": ["edit_masked"],
        "edit_samples": ["Evidence", "SCORES", "Samples"],
        "filters": ["bye", "halve_by_attention"],
        "fine_tuning": ["fine_tune_clean", "fine_tune_further"],
        "input_tests": ["prune_attention", "strip"],
        "interface": ["Defence", "Defended", "Defender", "undefended"],
        "masking": ["mask_at_inference"],
        "pruning": ["activity", "fine_prune", "prune"],
        "random_masks": ["disagreement", "halve_by_disagreement", "vote"],
        "ratio_rule": ["chosen_ratio", "masking_gains"],
        "registry": ["register"],
        "self_purification": ["disp", "filtered_disp", "random_purification", "self_purify"],
        "suspicion": ["input_scores"],
    },
)
