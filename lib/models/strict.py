"""The one way in for weights and tokenizers: safetensors only, no code of theirs, and all of it as the config says.

The libraries fill what a checkpoint lacks with random weights, and make a tokenizer of no words where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"

Model = TypeVar("Model")
Words = TypeVar("Words", bound=PreTrainedTokenizerBase)


def strict(kind: type[Model], source: Mapping[str, str], title: str | None = None, **settings: Any) -> Model:
    """`kind.from_pretrained`, of transformers or diffusers, from what `lib.settings.paths.pretrained` gives.

    title: what such a model is called. Raises ValueError for weights that are missing, unknown or of another shape, and
    for files that are missing or cannot be read.
    """
    name = described(source)
    asked = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True} | settings
    try:
        model, info = kind.from_pretrained(**source, **asked)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} cannot be loaded as {kind.__name__}: {_line(error)}") from None
    faults = {
        "missing": sorted(info["missing_keys"]),
        "unknown": sorted(info["unexpected_keys"]),
        "of another shape": sorted(f"{key} {list(a)} for {list(b)}" for key, a, b in info["mismatched_keys"]),
    }
    if any(faults.values()):
        listed = (f"{what}: {', '.join(keys[:3])} ({len(keys)} in all)" for what, keys in faults.items() if keys)
        what = title or kind.__name__
        raise ValueError(f"the weights of {name} are not {what}'s by its config.json: {'; '.join(listed)}")
    return model


def strict_words(kind: type[Words], source: Mapping[str, str], room: int | None = None) -> Words:
    """The tokenizer there. `room`: how many words the model's embedding has, if it is known.

    Raises ValueError where its files are missing or cannot be read, and where its ids are more than the model knows.
    """
    name, folder = described(source), Path(source["pretrained_model_name_or_path"], source.get("subfolder", ""))
    if folder.is_dir() and not (folder / TOKENIZER_CONFIG).is_file():
        raise ValueError(f"{name} has no tokenizer: {TOKENIZER_CONFIG} is missing in {folder}")
    try:
        words = kind.from_pretrained(**source)
    except Exception as error:  # `tokenizers` raises nothing narrower for a file that it cannot read
        raise ValueError(f"the tokenizer of {name} cannot be read: {_line(error)}") from None
    if set(words.get_vocab()) <= set(words.all_special_tokens):
        raise ValueError(f"{name} has no tokenizer: its vocabulary is missing")
    if room is not None and (most := max(words.get_vocab().values())) >= room:
        raise ValueError(f"the tokenizer of {name} has ids up to {most}, but the model's embedding ends at {room - 1}")
    return words


def described(source: Mapping[str, str]) -> str:
    """The folder or hub id in quotes, and the part of it that is meant."""
    part = f", {source['subfolder']}" if "subfolder" in source else ""
    return f"{source['pretrained_model_name_or_path']!r}{part}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
