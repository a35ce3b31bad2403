"""MMMU's scores: each rule of lmms-eval on an answer worked by hand, and parity with checkouts of theirs."""

import ast
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics.mmmu import DISCIPLINES, accuracy, normalized, open_correct, read_choice, read_open, score

FRUIT = ("apple", "green pear", "plum", "the apple pie")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("'C'", "C"),
        ("(A)", "A"),
        ("The answer is (B), not (A)", "A"),  # of several the last
        ("(D) but A ", "D"),  # brackets come before bare letters
        ("I say C because B says so", "B"),
        ("NASA knows", "A"),  # a letter at a word's end counts, as in lmms-eval
        ("NASA or USB or C here", "C"),  # of several, the last that stands alone
        ("NASA and USB", "A"),  # none stands alone: the first option
        ("A.plum", "A"),
        ("it may be any kind of green pear", "B"),
        ("it must be some kind of the apple pie", "A"),  # both texts are there, `apple` begins later
        ("green pear", None),  # too short to look for texts
        ("", None),
        ("none of these five or six words", None),
    ],
)
def test_a_letter_is_read_by_the_rules_in_their_order(response, letter):
    assert read_choice(response, FRUIT) == letter


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("30", [30.0]),
        ("36 watts", ["36 watts", 36.0]),
        ("The answer is 1,250 dollars.", ["1,250 dollars", 1250.0, 250.0]),  # what follows the comma counts as well
        ("x = 3\nso y = 4", [4.0]),  # of the last line's tails the shortest; the first line has no cue
        ("Transformation", ["transformation"]),
        ("B", [" b", "b "]),
        ("", [""]),
        ("It is :", ["it is :"]),
        ("1.2e3 or -7", ["1.2e3 or -7", 1200.0, 1.0, 3.0, -7.0]),  # and what stands around a point or an e
        ("It could be so that the result is 2/3", ["2/3", 2.0, 3.0]),
    ],
)
def test_an_open_answer_is_read_by_the_rules(response, read):
    assert read_open(response) == read


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,000", [1000.0]), (" 2.346 ", [2.35]), ("Tampa", ["tampa"]), ("C", [" c", "c "]), ("1/64", ["1/64"])],
)
def test_normalized(text, value):
    assert normalized(text) == value


@pytest.mark.parametrize(
    ("truth", "response", "right"),
    [
        ("30", "30", True),
        ("30", "36 watts", False),
        ("8.4", "It is 8.400 V", True),
        ("0.963", "about 0.96", True),  # both are rounded to two decimals
        ("30", "the answer is 1 or 30", True),
        ("Transformation", "a transformation of type I", True),
        ("embryonic", "fetal", False),
        ("C", "option C is best", False),  # the tail after `is` is `best`
        ("C", "vitamin C", True),
        ("1/64", "1/64", True),
        ("['24/7', '3.429']", "24/7", False),  # lmms-eval takes the list's text for the truth
    ],
)
def test_open_answers_are_right_by_containment_or_rounded_equality(truth, response, right):
    assert open_correct(truth, read_open(response)) is right


def table(*rows) -> pd.DataFrame:
    """Rows (id, answer, options); open questions have no options."""
    return pd.DataFrame(
        {
            "id": f"validation_{subject}_{k}",
            "kind": subject,
            "question_type": "multiple-choice" if options else "open",
            "answer": answer,
            "options": options,
        }
        for k, (subject, answer, options) in enumerate(rows)
    )


def test_scores_and_accuracies_of_a_small_set():
    asked = table(("Math", "B", FRUIT), ("Math", "30", ()), ("Physics", "A", FRUIT), ("Art", "D", FRUIT))
    scores = score(asked, ["(B)", "36 watts", "A", "C"], seed=0)
    assert scores["correct"].tolist() == [True, False, True, False]
    assert scores["read"].tolist() == ["B", "36 watts | 36.0", "A", "C"] and not scores["guessed"].any()
    found = accuracy(scores).set_index("name")
    assert found["value"].to_dict() == {
        "Overall": 0.5,
        "Art and Design": 0.0,
        "Science": 2 / 3,
        "Art": 0.0,
        "Math": 0.5,
        "Physics": 1.0,
    }
    assert found["n"].tolist() == [4, 1, 3, 1, 2, 1]
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()


def test_what_cannot_be_read_is_guessed_by_seed_and_id_alone():
    asked = table(*[("Math", "A", FRUIT)] * 400)
    scores = score(asked, ["no idea"] * 400, seed=0)
    assert scores["guessed"].all() and accuracy(scores)["guessed"].tolist() == [1.0, 1.0, 1.0]
    counts = scores["read"].value_counts()
    assert set(counts.index) == set("ABCD") and counts.min() > 60  # 100 expected, 4.6 standard deviations
    back = score(asked[::-1], ["no idea"] * 400, seed=0)[::-1].reset_index(drop=True)
    assert back.equals(scores)
    assert not score(asked, ["no idea"] * 400, seed=1)["read"].equals(scores["read"])


def test_refusals():
    asked = table(("Math", "B", FRUIT))
    with pytest.raises(ValueError, match="2 responses are given for 1 questions"):
        score(asked, ["A", "B"], seed=0)
    with pytest.raises(ValueError, match="subject='Maths' must be one of MMMU's: Accounting"):
        accuracy(score(asked.assign(kind="Maths"), ["A"], seed=0))


def test_thirty_subjects_in_six_disciplines():
    subjects = [subject for group in DISCIPLINES.values() for subject in group]
    assert len(DISCIPLINES) == 6 and len(subjects) == len(set(subjects)) == 30


def theirs(file: Path, *names: str) -> dict:
    """Functions of a Python file by name, without the imports of the whole."""
    space = {"re": re, "random": random, "np": np}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            exec(compile(ast.Module([node], []), str(file), "exec"), space)
    return space


@pytest.fixture(scope="module")
def lmms():
    root = os.environ.get("LMMS_EVAL")
    if not root:
        pytest.skip("LMMS_EVAL is not set: it may name a checkout of EvolvingLMMs-Lab/lmms-eval or of LLaDA-V's copy")
    folder = Path(root) / "lmms_eval" / "tasks"
    shared = folder / "_task_utils" / "mmmu_mcq_utils.py"
    names = ("parse_open_response", "extract_numbers", "normalize_str", "check_is_number", "eval_open")
    space = theirs(folder / "mmmu" / "utils.py", *names, "parse_multi_choice_response")
    if shared.exists():
        name = "parse_mmmu_multi_choice_response"
        space["parse_multi_choice_response"] = theirs(shared, name)[name]
    space["parse_multi_choice_response"].__globals__["random"] = Unguessed
    return space


class Unguessed:
    """In the place of the module `random`: what cannot be read is None."""

    choice = staticmethod(lambda choices: None)


PHRASES = "A,B,C,D,(A),(B),A.,B.,apple,plum,pear,so,is,=,3,-0.5,2e3,.5,the,answer,Final:,.,',\n,NASA,É,nan"
WORDS = st.sampled_from([*PHRASES.split(","), "1,250", ","])
RESPONSES = st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=30)


def test_parity_with_lmms_eval_on_made_up_responses(lmms):
    letters = ["A", "B", "C", "D"]
    seen = set()

    @settings(max_examples=1000)
    @given(RESPONSES, st.lists(st.sampled_from(["apple", "plum", "3", "", "A pear", "the É"]), min_size=2, max_size=4))
    def check(response, options):
        own = letters[: len(options)]
        index = dict(zip(own, options, strict=True))
        chosen = read_choice(response, options)
        assert chosen == lmms["parse_multi_choice_response"](response, own, index)
        seen.add(chosen)
        ours, other = read_open(response), lmms["parse_open_response"](response)
        assert sorted(map(repr, set(ours))) == sorted(map(repr, other)) or any(x != x for x in other)
        for truth in ("30", "apple", "B", "-0.5", "", "1,250", response):
            assert open_correct(truth, ours) == lmms["eval_open"](truth, other), truth

    check()
    assert seen == {None, *letters}


def test_parity_with_lmms_eval_on_mmmus_published_outputs(lmms):
    root = os.environ.get("MMMU")
    if not root:
        pytest.skip("MMMU is not set: it may name a checkout of MMMU-Benchmark/MMMU, which holds two models' outputs")
    files = sorted((Path(root) / "mmmu" / "example_outputs").glob("*/*/output.json"))
    assert len(files) >= 58
    for file in files:
        for row in json.loads(file.read_text()):
            response, truth = row["response"], row["answer"]
            if row["question_type"] == "multiple-choice":
                options, own = list(row["index2ans"].values()), list(row["index2ans"])
                assert read_choice(response, options) == lmms["parse_multi_choice_response"](
                    response, own, row["index2ans"]
                )
            elif isinstance(truth, str):
                other = lmms["eval_open"](truth, lmms["parse_open_response"](response))
                assert open_correct(truth, read_open(response)) == other, row["id"]


def test_guesses_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    score(table(("Math", "A", FRUIT)), ["?"], seed=0)
    assert torch.equal(torch.get_rng_state(), before)
