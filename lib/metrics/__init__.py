"""Measures of an outcome: TMA and CTI with intervals, attack success, verdicts, embeddings, AUROC, MMMU's scoring.

They take numbers, pictures and texts; whose they are, and in which table they stand, is the studies' affair.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "decision": ["decide", "is_attack"],
        "embeddings": ["load_embedding", "values"],
        "facts": ["right_answers", "right_parts", "stated_facts"],
        "intervals": ["bootstrap_mean", "mean_with_interval", "over_clusters", "over_seeds", "rate", "wilson"],
        "mmmu": ["accuracy", "score"],
        "roc": ["auroc"],
        "success": ["attacked", "correct", "edit_succeeds", "keyworded", "pixel_distance"],
        "tma": ["attribution", "coalition_values", "interaction", "shapley"],
    },
)
