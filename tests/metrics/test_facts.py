import pandas as pd
import pytest
import torch

from lib.data.face_parts import ATTRIBUTES
from lib.data.face_words import description
from lib.metrics.facts import right_parts, stated_facts
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
