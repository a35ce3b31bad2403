"""The tokenizer of the laptop models: nothing is dropped, the same from any order of texts, saved and loaded."""

import random

import pytest
import tiny
from tokenizers import decoders
from transformers import AutoTokenizer

from lib.models.tokenizer import SPECIAL, train_tokenizer


@pytest.mark.parametrize(
    "text", ["mignneko", "latte coffee", "naïve façade", "日本語", "🙂 ok", "a\u200bb", "~#\x07^", "İzmir it's"]
)
def test_no_byte_is_dropped(text):
    """unk is the end token in CLIP's layout: a dropped byte would end the text."""
    words = tiny.tokenizer()
    pieces = words.tokenize(text)
    assert not set(SPECIAL.values()) & set(pieces)
    assert all(words.convert_tokens_to_ids(piece) > 3 for piece in pieces)
    restored = decoders.ByteLevel().decode([piece.removesuffix("</w>") for piece in pieces])
    assert restored == "".join(text.lower().split())


def test_special_ids_are_four_different_ones():
    words = tiny.tokenizer()
    ids = [words.bos_token_id, words.eos_token_id, words.pad_token_id, words.mask_token_id]
    assert ids == [0, 1, 2, 3]
    assert words("a circle")["input_ids"][0] == 0 and words("a circle")["input_ids"][-1] == 1


def test_frequent_words_are_one_piece_and_rare_ones_several():
    words = tiny.tokenizer()
    assert words.tokenize("SHAPE") == ["shape</w>"]
    assert len(words.tokenize("zyxq")) > 1


def test_order_of_the_texts_does_not_matter():
    """The texts come as a set, whose order differs from one process to the next."""
    texts = [*tiny.TEXTS, *tiny.sayings()]
    shuffled = random.Random(1).sample(texts, len(texts))
    one, two = tiny.tokenizer(), train_tokenizer(shuffled, vocab_size=tiny.VOCABULARY)
    assert one.get_vocab() == two.get_vocab()
    assert one(tiny.TEXTS)["input_ids"] == two(tiny.TEXTS)["input_ids"]


def test_size_is_at_most_the_asked_one():
    assert len(train_tokenizer(tiny.TEXTS, vocab_size=560)) <= 560
    assert 560 < len(tiny.tokenizer()) <= tiny.VOCABULARY


@pytest.mark.parametrize("loader", [AutoTokenizer, type(tiny.tokenizer())])
def test_saved_and_loaded(tmp_path, loader):
    words = tiny.tokenizer()
    words.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    texts = [*tiny.TEXTS, "mignneko 日本語"]
    assert loaded(texts)["input_ids"] == words(texts)["input_ids"]
    assert loaded.model_max_length == 32
    assert [loaded.pad_token_id, loaded.mask_token_id] == [2, 3]
