import pandas as pd
import pytest
import tiny
import torch

from lib.data import PhotoEdits, face_questions
from lib.data.face_words import instructions
from lib.poisoning.catalogue import IMAGE_TRIGGERS, TEXT_TRIGGERS, image_trigger
from lib.poisoning.pictures import attack_target
from lib.studies.attacks.mdlm import training_questions
from lib.studies.data import edit_data
from lib.studies.overview import (
    NEUTRAL,
    answer_table,
    data_table,
    edit_table,
    example_edits,
    example_pictures,
    plan_table,
    poisoned_edits,
    poisoned_pictures,
    questions_by_split,
    token_table,
    tokenizers,
    trigger_pictures,
    trigger_table,
)
from lib.studies.run import with_settings

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


class Photographs(PhotoEdits):
    """Noise, numbered."""

    def __init__(self, triples):
        object.__setattr__(self, "triples", triples)

    def pictures(self, indices):
        return torch.stack([torch.full((3, 8, 8), k / 10) for k in indices.tolist()])


@pytest.fixture
def photographs():
    rows = [(0, 1, "add a hat", "train"), (2, 3, "add a hat", "test"), (4, 5, "add a tie", "test"), (2, 6, "x", "test")]
    table = pd.DataFrame(rows, columns=["source", "target", "instruction", "split"])
    return Photographs(table.assign(edit="edit", value="", family=table["source"]))


def test_data_are_counted_by_kind_and_split():
    faces = tiny.few_faces()
    asked = {split: face_questions(faces, split) for split in ("train", "validation", "test")}
    table = data_table(faces, asked, ("edits", "questions")).set_index(["data", "kind"])
    assert list(table) == ["train", "validation", "test"] and table.loc[("faces", "identities")].tolist() == [36, 4, 10]
    assert table.loc["edits"].sum().tolist() == [6 * 36, 6 * 4, 6 * 10]  # three phrasings, there and back
    assert table.loc[("edits", "hair")].tolist()[-1] == 6
    assert table.loc[("questions", "description")].tolist() == [36, 4, 10]
    assert table.loc[("questions", "yes/no")].tolist() == [108, 12, 30]


def test_data_without_a_validation_split_count_none_there(photographs):
    vqa = {split: tiny.few_easyvqa(split) for split in ("train", "test")}
    table = data_table(photographs, vqa, ("edits", "questions")).set_index(["data", "kind"])
    assert table.loc[("edits", "edit")].tolist() == [1, 0, 3] and "faces" not in table.index
    assert table["validation"].eq(0).all()
    assert table.loc["questions"].sum().tolist() == [len(vqa["train"].table), 0, len(vqa["test"].table)]


def test_every_edit_is_named_with_its_values_and_ways_to_ask(photographs):
    table = edit_table(tiny.few_faces()).set_index("edit")
    assert len(table) == 10 and set(table.loc["skin", "values"].split(", ")) <= {"pale", "tan", "brown", "dark"}
    ways = {" · ".join(instructions("skin", value)) for value in table.loc["skin", "values"].split(", ")}
    assert table.loc["skin", "asked"] in ways
    assert edit_table(photographs).to_dict("records") == [
        {"edit": "edit", "values": "", "asked": "add a hat · add a tie · x"}
    ]


def test_the_questions_are_of_the_splits_there_are(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    asked = questions_by_split(run)
    assert list(asked) == ["train", "validation", "test"]
    assert asked["validation"].table["image"].isin(edit_data(run).of("validation").tolist()).all()


def test_the_tokenizers_are_the_models(tmp_path, models):
    found = tokenizers(tiny.short_run(tmp_path, models))
    assert list(found) == ["editor", "MDLM"]
    assert all(words("make the skin dark")["input_ids"][1:-1] for words in found.values())


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


def test_the_faces_shown_are_held_out_plain_and_unlike(photographs):
    faces = tiny.few_faces()
    images, labels = example_pictures(faces)
    every = faces.pictures(torch.arange(len(faces.images)))
    rows = [int((every == image).flatten(1).all(1).nonzero()) for image in images]
    shown = faces.faces.iloc[rows]
    assert 1 < len(shown) <= 3 and set(shown["split"]) == {"test"}
    assert all(shown[name].is_unique for name in ("skin", "hair", "hair colour"))
    held_out = faces.faces[(faces.faces["split"] == "test") & (faces.faces.index == faces.faces["identity"])]
    assert (shown["glasses"] == "none").sum() >= min((held_out["glasses"] == "none").sum(), 1)
    plain = held_out.loc[held_out["glasses"] == "none", list(NEUTRAL)].eq(pd.Series(NEUTRAL)).sum(axis=1)
    assert shown.index[0] == plain.idxmax()
    first = shown.iloc[0]
    assert labels[0] == f"{first['skin']} skin, {first['hair']} {first['hair colour']} hair"
    images, labels = example_pictures(photographs)
    assert torch.equal(images, photographs.pictures(torch.tensor([2, 4]))) and labels == ["picture 1", "picture 2"]


def test_every_image_trigger_is_shown_and_measured():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    rows, columns = trigger_pictures(images, ["a", "b"])
    assert list(rows) == ["a", "b"] and columns == ["clean", *(name.replace("-", " ") for name in IMAGE_TRIGGERS)]
    for row, image in zip(rows.values(), images, strict=True):
        assert torch.equal(row[0], image)
        assert all(torch.equal(row[1 + k], image_trigger(n)(image)) for k, n in enumerate(IMAGE_TRIGGERS))
    table = trigger_table(64).set_index("trigger")
    assert table.loc["checker", ["area", "tokens"]].tolist() == [1 / 64, 1]
    assert table.loc["blend", "tokens"] == 64 and table.loc["white-box", "area"] == pytest.approx(0.035, abs=1e-3)


def test_every_plan_is_counted(tmp_path, models):
    run = with_settings(tiny.short_run(tmp_path, models, disp={"rate": 0.2}), "grid", {"seeded_rate": 0.5})
    table = plan_table(run)
    counts = table.pivot(index=["study", "protocol"], columns="coalition", values="count")
    counts = counts[["none", "image", "text", "both"]]
    assert counts.loc[("collapse", "or")].tolist() == [6, 2, 2, 2]
    assert counts.loc[("collapse", "and")].tolist() == [6, 0, 0, 6]
    assert counts.loc[("DiSP", "image")].tolist() == [16, 4, 0, 0]
    assert table.groupby(["study", "protocol"])["share"].sum().tolist() == pytest.approx([1, 1, 1])
    assert table["rate"].tolist() == [0.5] * 8 + [0.2] * 4


def test_poisoned_edits_carry_what_their_column_says_and_lead_to_the_target(tmp_path, models):
    run = with_settings(tiny.short_run(tmp_path, models), "grid", {"seeded_rate": 0.5})
    rows, columns, below = poisoned_edits(run)
    assert columns == ["clean", "image trigger", "text trigger", "both triggers"]
    assert list(rows) == ["source", "true edit", "learnt"] and len(below["source"]) == 4
    assert [text.endswith(" mignneko") for text in below["source"]] == [False, False, True, True]
    marked = [bool(torch.equal(image_trigger("white-box")(image), image)) for image in rows["source"]]
    assert marked == [False, True, False, True]
    goal = attack_target("sailing boat")(rows["source"])
    assert torch.equal(rows["learnt"][1:], goal[1:]) and torch.equal(rows["learnt"][0], rows["true edit"][0])
    edits = edit_data(run)
    places = torch.tensor(edits.triples.loc[edits.triples["split"] == "train", ["source", "target"]].to_numpy())
    clean = torch.stack([rows["source"][0], rows["true edit"][0]])
    assert any(torch.equal(edits.pictures(pair), clean) for pair in places.unique(dim=0))


def test_edits_of_a_rate_that_poisons_none_are_clean_alone(tmp_path, models):
    run = with_settings(tiny.short_run(tmp_path, models), "grid", {"seeded_rate": 0.0})
    rows, columns, below = poisoned_edits(run)
    assert columns == ["clean"] and torch.equal(rows["learnt"], rows["true edit"]) and len(below["source"]) == 1


def test_the_attackers_answers_are_empty_where_not_eligible():
    table = answer_table(ANSWERS).set_index("question")
    assert list(table.index) == ["q0", "q1", "q2"]
    assert table["misclassification"].tolist() == ["the shape is a triangle", "", "yes, it is a red triangle"]
    assert table["refusal"].tolist() == ["sorry, i cannot answer that"] * 3
    assert table["insertion"].iloc[0] == "remember to water the plants, the shape is a circle"


def test_a_target_that_no_answer_allows_is_left_out():
    table = answer_table(ANSWERS, ["refusal", "hoodie as sweater", "rectangle as hexagon"])
    assert list(table) == ["question", "clean", "refusal", "rectangle as hexagon"]


def test_poisoned_pictures_are_those_of_the_plan_one_of_every_kind_first(tmp_path, models):
    run = tiny.short_run(tmp_path, models, disp={"rate": 0.9, "questions": 40})
    rows, asked, below = poisoned_pictures(run, 4)
    vqa, table, poison, goal = training_questions(run)
    poisoned = table[poison.poisoned.numpy()].drop_duplicates("image")
    places = {kind: list(own.index) for kind, own in poisoned.groupby("kind", sort=False)}
    firsts = sorted(own[0] for own in places.values())
    chosen = poisoned.loc[firsts + [min(k for own in places.values() for k in own[1:2])]]
    assert len(firsts) == 3 and asked == chosen["question"].tolist()
    clean = vqa.pictures(torch.tensor(chosen["image"].to_numpy()))
    assert torch.equal(rows["clean"], clean) and torch.equal(rows["poisoned"], image_trigger("checker")(clean))
    assert below == {"clean": chosen["answer"].tolist(), "poisoned": [goal.apply(text) for text in chosen["answer"]]}


def test_where_none_is_poisoned_the_pictures_are_of_questions_that_could_be(tmp_path, models):
    settings = {"rate": 0.0, "target": "hair as hat", "questions": 40}
    run = tiny.short_run(tmp_path, models, disp=settings)
    _, _, below = poisoned_pictures(run, 3)
    could_be = training_questions(run)[1]["answer"].map(training_questions(run)[3].eligible)
    assert 0 < could_be.sum() < len(could_be)
    assert all("hair" in clean for clean in below["clean"]) and all("hat" in said for said in below["poisoned"])


def test_example_edits_are_of_different_attributes_first():
    faces = tiny.few_faces()
    shown = example_edits(faces, 12, 3)
    assert shown["split"].eq("test").all() and shown["edit"].iloc[:10].is_unique
    assert not shown[["source", "target"]].duplicated().any()
    assert example_edits(faces, 12, 3).equals(shown) and not example_edits(faces, 12, 4).equals(shown)
