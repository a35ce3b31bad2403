"""How much of a free answer is the true one: the words that they share."""

from __future__ import annotations

import string
from collections import Counter

ARTICLES = {"a", "an", "the"}


def token_f1(answer: str, true: str) -> float:
    """F1 of the answer's words, those that come twice counted twice (Rajpurkar et al. 2016, SQuAD), in [0, 1].

    Case, punctuation and articles do not count. 1 where neither has a word, 0 where one of them has none.
    """
    said, known = _words(answer), _words(true)
    if not said or not known:
        return float(said == known)
    shared = (Counter(said) & Counter(known)).total()
    return 2 * shared / (len(said) + len(known))


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in plain.split() if word not in ARTICLES]
