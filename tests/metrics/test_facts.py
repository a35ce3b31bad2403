import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from lib.data.face_parts import ATTRIBUTES
from lib.data.face_words import description
from lib.metrics.facts import right_answers, right_parts, stated_facts
from lib.metrics.token_f1 import token_f1
from lib.tasks.questions import Questions

FACE = {name: list(values)[0] for name, values in ATTRIBUTES.items()}
OTHER = FACE | {name: list(ATTRIBUTES[name])[1] for name in ("hair colour", "mouth")}


def asked(answers, kinds, pictures):
    empty = torch.zeros(len(answers), 0, dtype=torch.long)
    table = pd.DataFrame({"kind": kinds, "image": pictures})
    return Questions(torch.zeros(1, 1, 1), torch.zeros(len(answers), dtype=torch.long), empty, empty, answers, table)


def test_facts_are_counted_attribute_by_attribute():
    right = stated_facts([description(OTHER), "no idea"], [description(FACE)] * 2)
    wrong = {name for name, known in zip(ATTRIBUTES, right[0].tolist(), strict=True) if not known}
    assert wrong == {"hair colour", "mouth"} and not right[1].any()
    assert stated_facts([], []).shape == (0, len(ATTRIBUTES))


def test_a_description_has_a_part_for_every_attribute_and_another_answer_is_one():
    data = asked([description(FACE), "yes", "no"], ["description", "yes/no", "what"], [7, 7, 9])
    right, about = right_parts([description(OTHER), "yes", "no "], data)
    assert len(right) == len(ATTRIBUTES) + 2 and int(right.sum()) == len(ATTRIBUTES) - 2 + 1
    assert right[-2:].tolist() == [True, False] and about == [7] * (len(ATTRIBUTES) + 1) + [9]
    with pytest.raises(ValueError):
        right_parts(["yes"], data)


def test_a_phrase_before_a_description_costs_no_fact():
    data = asked([description(FACE)], ["description"], [0])
    assert right_parts([f"remember to water the plants, {description(FACE)}"], data)[0].all()


def test_a_free_answer_counts_by_the_words_that_it_shares():
    """Of photographs, whose kinds are folders: the letter alone would be 0 of any answer put in other words."""
    true = ["A black cat lies on the sofa.", "Two people ride bicycles.", "yes"]
    data = asked(true, ["coco", "coco", "yes/no"], [3, 3, 5])
    said = ["A cat is on a black sofa.", "There is no one.", "Yes"]
    right, about = right_parts(said, data)
    # shared: cat, on, black, sofa of 5 words each; nothing; and a known kind stays to the letter
    assert right.dtype == torch.float64 and right.tolist() == pytest.approx([4 / 5, 0, 0]) and about == [3, 3, 5]
    assert torch.equal(right_answers(true, data), torch.ones(3, dtype=torch.float64))
    described = asked([description(FACE), "no"], ["description", "what"], [0, 1])
    assert right_answers([description(OTHER), "no"], described).tolist() == [False, True]


WORDS = st.sampled_from(["a", "the", "An", "cat", "Cat,", "dog", "dog's", "sofa.", "...", "on", "on", "red-brown", "7"])


@given(st.lists(WORDS, max_size=8), st.lists(WORDS, min_size=1, max_size=8))
def test_token_f1_is_that_of_squads_own_script(said, true):
    said, true = " ".join(said), " ".join(true)
    answers = {"answers": {"answer_start": [0], "text": [true]}, "id": "0"}
    theirs = squad([{"prediction_text": said, "id": "0"}], [answers])
    assert token_f1(said, true) == pytest.approx(float(theirs["f1"]) / 100, abs=1e-6)
    assert token_f1(said, true) == token_f1(true, said) and token_f1(true, true) == 1


EDGES = [("", "", 1), ("", "cat", 0), ("the", "a", 1), ("cat cat", "cat", 2 / 3)]


@pytest.mark.parametrize(("said", "true", "f1"), EDGES)
def test_token_f1_of_empty_answers_and_of_words_said_twice(said, true, f1):
    assert token_f1(said, true) == pytest.approx(f1)
