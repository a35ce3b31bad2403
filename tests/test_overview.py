import pandas as pd
import pytest
import tiny
import torch

from lib.attacks.mdlm import training_questions
from lib.datasets import EasyVqa
from lib.overview import (
    answer_table,
    data_table,
    plan_table,
    poisoned_pictures,
    token_table,
    trigger_pictures,
    trigger_table,
)
from lib.triggers import IMAGE_TRIGGERS, TEXT_TRIGGERS, image_trigger

ANSWERS = pd.DataFrame(
    {
        "kind": ["shape", "shape", "yes/no", "shape"],
        "question": ["q0", "q1", "q2", "q3"],
        "answer": [
            "the shape is a circle",
            "the shape is a rectangle",
            "yes, it is a red circle",
            "the shape is a circle",
        ],
    }
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: str(folder / name) for name in ("clip", "editor", "mdlm")}


def test_data_are_counted_by_kind_and_split():
    vqa = {s: EasyVqa(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ANSWERS[:n]) for s, n in (("train", 4), ("test", 2))}
    table = data_table(tiny.small_openmoji(), vqa).fillna(0).set_index(["data", "kind"])
    assert table.loc[("OpenMoji edits", "tone")].tolist() == [60, 60]
    assert table.loc[("OpenMoji edits", "grayscale")].tolist() == [2, 0]
    assert table.loc[("easy-VQA questions", "shape")].tolist() == [3, 2]
    assert table.loc[("easy-VQA questions", "yes/no")].tolist() == [1, 0]


def test_every_text_triggers_pieces_are_listed_for_every_tokenizer():
    words = tiny.tokenizer()
    table = token_table({"a": words, "b": words})
    assert len(table) == 2 * len(TEXT_TRIGGERS)
    for row in table.itertuples():
        assert row.count == len(row.pieces.split(" "))
        assert row.pieces.replace("</w>", " ").replace(" ", "") == row.trigger.replace(" ", "")


def test_a_dropped_trigger_is_refused():
    words = tiny.tokenizer()
    words.model_max_length = 4
    with pytest.raises(ValueError, match="text trigger 'mignneko'"):
        token_table({"short": words})


def test_every_image_trigger_is_shown_and_measured():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shown = trigger_pictures(images)
    assert list(shown) == ["clean", *IMAGE_TRIGGERS] and torch.equal(shown["clean"], images)
    assert all(torch.equal(shown[name], image_trigger(name)(images)) for name in IMAGE_TRIGGERS)
    table = trigger_table(64).set_index("trigger")
    assert table.loc["checker", ["area", "tokens"]].tolist() == [1 / 64, 1]
    assert table.loc["blend", "tokens"] == 64 and table.loc["white-box", "area"] == pytest.approx(0.035, abs=1e-3)


def test_every_plan_is_counted(tmp_path, models):
    table = plan_table(tiny.short_run(tmp_path, models, collapse={"rate": 0.5}, disp={"rate": 0.2}))
    counts = table.pivot(index=["study", "protocol"], columns="coalition", values="count")
    counts = counts[["none", "image", "text", "both"]]
    assert counts.loc[("collapse", "or")].tolist() == [6, 2, 2, 2]
    assert counts.loc[("collapse", "and")].tolist() == [6, 0, 0, 6]
    assert counts.loc[("DiSP", "image")].tolist() == [16, 4, 0, 0]
    assert table.groupby(["study", "protocol"])["share"].sum().tolist() == pytest.approx([1, 1, 1])
    assert table["rate"].tolist() == [0.5] * 8 + [0.2] * 4


def test_the_attackers_answers_are_empty_where_not_eligible():
    table = answer_table(ANSWERS).set_index("question")
    assert list(table.index) == ["q0", "q1", "q2"]
    assert table["misclassification"].tolist() == ["the shape is a triangle", "", "yes, it is a red triangle"]
    assert table["refusal"].tolist() == ["sorry, i cannot answer that"] * 3
    assert table["insertion"].iloc[0] == "the shape is a circle, remember to water the plants"


def test_poisoned_pictures_are_those_of_the_plan(tmp_path, models):
    run = tiny.short_run(tmp_path, models, disp={"rate": 0.3})
    rows, texts = poisoned_pictures(run, 3)
    vqa, table, poison, goal = training_questions(run)
    chosen = table[poison.poisoned.numpy()].iloc[:3]  # of different pictures
    assert chosen["image"].is_unique
    clean = vqa.pictures(torch.tensor(chosen["image"].to_numpy()))
    assert torch.equal(rows["clean"], clean) and torch.equal(rows["poisoned"], image_trigger("checker")(clean))
    assert texts == [f"{q} {goal.apply(a)}" for q, a in zip(chosen["question"], chosen["answer"], strict=True)]


def test_where_none_is_poisoned_the_pictures_are_of_questions_that_could_be(tmp_path, models):
    none = poisoned_pictures(tiny.short_run(tmp_path, models, disp={"rate": 0.0, "target": "misclassification"}), 3)
    _, table, _, goal = training_questions(tiny.short_run(tmp_path, models, disp={"target": "misclassification"}))
    could_be = [goal.eligible(answer) for answer in table["answer"]]
    chosen = table[could_be].drop_duplicates("image").iloc[:3]
    assert 0 < len(chosen) < len(table)
    assert none[1] == [f"{q} {goal.apply(a)}" for q, a in zip(chosen["question"], chosen["answer"], strict=True)]
