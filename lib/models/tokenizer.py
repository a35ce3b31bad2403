"""One small byte-level BPE tokenizer in CLIP's layout for all the laptop models."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|pad|>",
    "mask_token": "<|mask|>",
}


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1600, max_length: int = 32) -> CLIPTokenizer:
    """Byte-pair merges learnt from `texts` (lower-cased), as a `transformers.CLIPTokenizer`.

    Every byte is in the vocabulary, so no text is dropped; a rare word becomes several pieces. Bytes that
    end a word are named to the trainer, which would else number them in the random order of its hash map.
    """
    empty = CLIPTokenizer()
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = empty.backend_tokenizer.normalizer
    trained.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *(f"{byte}</w>" for byte in alphabet)],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(sorted(texts), trainer)
    vocab = trained.get_vocab(with_added_tokens=False)
    merges = [tuple(merge) for merge in _merges(trained)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length, **SPECIAL)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
