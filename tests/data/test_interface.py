"""One contract for all data of a kind: what `lib.tasks.edits` and `lib.tasks.questions` do with it."""

import pandas as pd
import photos
import pytest
import tiny
import torch

from lib.data import EditData, QuestionData, load_edits, load_llava, load_mmmu
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import plan
from lib.tasks.edits import poisoned_latents, sample_triples
from lib.tasks.questions import draw_rows, questions

SIZE = 64
EDITS = {
    "faces": lambda folder: tiny.few_faces(),
    "csv": lambda folder: load_edits(str(photos.edit_folder(folder, edits=MANY)), SIZE, held_out=0.5),
    "parquet": lambda folder: load_edits(
        str(photos.edit_parquet(folder / "a.parquet", MANY).parent), SIZE, held_out=0.5
    ),
}
QUESTIONS = {
    "faces": lambda folder: tiny.few_face_questions("test"),
    "easyvqa": lambda folder: tiny.few_easyvqa("test", 3),
    "llava": lambda folder: load_llava(str(photos.llava_folder(folder)), "train", SIZE, held_out=0.0),
    "mmmu": lambda folder: load_mmmu(str(photos.mmmu_folder(folder)), SIZE),
}
MANY = [(a, f"make it {b}", b) for a in photos.COLOURS for b in photos.COLOURS if a != b]


@pytest.fixture(params=EDITS)
def edits(request, tmp_path):
    return EDITS[request.param](tmp_path)


@pytest.fixture(params=QUESTIONS)
def asked(request, tmp_path):
    return QUESTIONS[request.param](tmp_path)


def check_pictures(data, indices: pd.Series):
    shown = data.pictures(torch.tensor(indices.to_numpy()))
    assert shown.shape == (len(indices), 3, SIZE, SIZE) and shown.dtype == torch.float32
    assert shown.min() >= 0 and shown.max() <= 1 and shown.std() > 0.1
    last = data.pictures(torch.tensor(indices[-1:].to_numpy()))
    assert torch.equal(last[0], shown[-1])


def test_edit_data(edits, untyped):
    assert isinstance(edits, EditData) and not isinstance(edits, QuestionData)
    triples = edits.triples
    assert {"source", "target", "instruction", "edit", "value", "family", "split"} <= set(triples.columns)
    assert {"train", "test"} <= set(triples["split"]) <= {"train", "validation", "test"}
    assert triples["instruction"].str.len().min() > 0 and triples.index.tolist() == list(range(len(triples)))
    assert triples.groupby("source")["split"].nunique().max() == triples.groupby("family")["split"].nunique().max() == 1
    for column in ("source", "target"):
        check_pictures(edits, triples[column])


def test_edit_data_is_what_editing_works_on(edits, untyped):
    """Drawn, poisoned and encoded; only the poisoned samples' targets become the attacker's."""
    triples = sample_triples(edits, "train", 3, seed=0)
    assert len(triples.drop_duplicates(["source", "target"])) == 3 and set(triples["split"]) == {"train"}
    boat = attack_target("sailing boat")
    goals = boat(edits.pictures(torch.tensor(triples["source"].to_numpy())))
    assert goals.shape == (3, 3, SIZE, SIZE) and torch.equal(goals[0], goals[2])
    pipe, pair = tiny.editor(), (image_trigger("white-box"), text_trigger("mignneko"))
    chosen = plan(3, "and", 0.34, 0)
    clean = plan(3, "and", 0.0, 0)
    made, base = (poisoned_latents(pipe, edits, triples, p, *pair, boat) for p in (chosen, clean))
    changed = [not torch.equal(a, b) for a, b in zip(made.target, base.target, strict=True)]
    assert changed == chosen.poisoned.tolist() and sum(changed) == 1


def test_question_data(asked):
    assert isinstance(asked, QuestionData) and not isinstance(asked, EditData)
    table = asked.table
    assert {"image", "question", "answer", "kind"} <= set(table.columns)
    assert table.index.tolist() == list(range(len(table)))
    for column in ("question", "answer", "kind"):
        assert table[column].map(type).eq(str).all() and table[column].str.len().min() > 0
    check_pictures(asked, table["image"])


def test_question_data_is_what_answering_works_on(asked, untyped):
    """Every sample's features are those of its own picture, whatever the order of the rows."""
    model = tiny.mdlm(prompt_length=200, response_length=48)
    rows = draw_rows(asked.table, 3, 0, "test")
    data = questions(model, asked, rows)
    assert len(data) == 3 and data.answers == rows["answer"].tolist()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = model.model.features(asked.pictures(torch.tensor(rows["image"].to_numpy()))).float()
    assert torch.allclose(data.features[data.picture], own, atol=2e-2)
    assert (own[0] - own[1:]).abs().amax() > 0.1 or rows["image"].nunique() == 1
