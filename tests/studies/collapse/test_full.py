import pandas as pd
import pytest

from lib.studies.collapse.full import design_conclusion, learnt, with_reference


def configuration(**changes):
    row = {"part": "grid", "name": "white-box mignneko 0.1", "label": "a, OR, 10 %", "protocol": "or", "rate": 0.1}
    row |= {"seeds": 3, "attacks": 3, "added_phi_text": 0.8, "added_phi_image": 0.1, "cti": -0.1}
    return row | {"phi_image": 0.2, "null_phi_image": 0.01, "verdict": "shared"} | changes


def test_labels_say_the_rate_once_and_how_many_seeds_learnt_it():
    table = pd.DataFrame([configuration(), configuration(part="pair", label="a, OR", rate=0.05, attacks=1)])
    assert learnt(table)["label"].tolist() == ["a, OR, 10 % (3 of 3)", "a, OR, 5 % (1 of 3)"]


def test_the_reference_is_the_and_attack_with_the_same_triggers():
    rows = pd.DataFrame({"part": ["pair"] * 3 + ["grid"], "protocol": ["or", "and", "and", "and"],
                         "image_trigger": ["box", "glasses", "box", "box"], "label": list("abcd")})
    cures = pd.DataFrame({"part": ["remedy"], "protocol": ["and"], "image_trigger": ["box"], "label": ["cure"]})
    assert with_reference(cures, rows)["label"].tolist() == ["as it is", "cure"]


def test_the_conclusion_counts_what_was_learnt_and_reads_failed_attacks_nowhere():
    failed = {"attacks": 0, "added_phi_text": None, "added_phi_image": None, "cti": None, "phi_image": None}
    table = pd.DataFrame([
        configuration(), configuration(protocol="and", verdict="collapsed onto text", cti=0.05),
        configuration(rate=0.01, verdict="failed attack", **failed),
    ])  # fmt: skip
    text = design_conclusion(table)
    assert "At 10 % 6 of 6 trainings learnt it; the text carries more in 1 of 1 under OR and 1 of 1 under AND" in text
    assert "all of it in 1." in text and "CTI lies between -0.100 and 0.050" in text
    assert "At 1 % 0 of 3 trainings learnt it; no attribution is read." in text and "null already" not in text


@pytest.mark.parametrize(("null", "told"), [(0.12, True), (0.09, False)])
def test_a_phi_that_the_null_has_already_is_told(null, told):
    text = design_conclusion(pd.DataFrame([configuration(name="eyeglasses", null_phi_image=null)]))
    assert ("is in the null already, so not the backdoor's, in 1 (eyeglasses)" in text) is told
