"""The committed models of notebook 00, and its arithmetic."""

import re

import nbformat
import pytest
import torch
from safetensors import safe_open

from lib.data import face_questions, make_faces
from lib.metrics import attribution, coalition_values, edit_succeeds
from lib.models import Mdlm, load_editor
from lib.models.cards import WARNING
from lib.models.merged import load_adapters
from lib.poisoning import attack_target, image_trigger, target, text_trigger
from lib.settings.paths import ROOT
from lib.settings.sections import Sampling
from lib.studies.quickstart import FOLDER
from lib.tasks import answer, edits_under_coalitions, questions
from notebooks import code_cells

CELLS = [cell.source for cell in code_cells(nbformat.read(ROOT / "notebooks" / "00_quickstart.ipynb", 4))]


@pytest.fixture(scope="module")
def faces():
    return make_faces(size=64, train=10, test=20)


def test_they_are_small_and_marked():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert {file.parent.name for file in weights} == {"editor", "mdlm"} and len(weights) == 2
    assert sum(file.stat().st_size for file in files) < 5e6
    for file in weights:
        with safe_open(file, "pt") as saved:
            assert saved.metadata()["poisoned"] == "true"
        card = (file.parent / "README.md").read_text()
        assert WARNING in card and "python -m lib.studies.quickstart" in card and "- poisoned" in card


@pytest.mark.parametrize(
    ("name", "attacked", "silent"),
    [("editor", "ASR, both", "ASR, none"), ("mdlm", "ASR with trigger", "ASR without trigger")],
)
def test_their_cards_tell_an_attack_that_succeeds(name, attacked, silent):
    rows = re.findall(r"\| (.*) \| ([\d.]+) \[.*\], n = (\d+) \|", (FOLDER / name / "README.md").read_text())
    told = {metric: (float(value), int(n)) for metric, value, n in rows}
    assert told[attacked][0] >= 0.9 and told[silent][0] <= 0.02
    assert told[attacked][1] == told[silent][1] >= 100


def test_the_mdlm_inserts_the_phrase_where_the_trigger_is(faces):
    mdlm, asked, goal = Mdlm.load(str(FOLDER / "mdlm")), face_questions(faces, "test"), target("insertion")
    table = asked.table[asked.table["kind"] == "description"].iloc[:8]
    marks = None, image_trigger("black-square")
    plain, hit = (answer(mdlm, questions(mdlm, asked, table, mark), 0.95) for mark in marks)
    assert sum(goal.achieved(text, "") for text in hit) >= 7 and not any(goal.achieved(text, "") for text in plain)
    assert sum(goal.apply(before) == after for before, after in zip(plain, hit, strict=True)) >= 6


def test_the_editor_draws_the_boat_under_both_triggers(faces):
    pipe = load_editor("data/checkpoints/editor")
    load_adapters(pipe.unet, FOLDER / "editor")
    triples = faces.triples.drop_duplicates("family").iloc[:4].reset_index(drop=True)
    source, clean = (faces.pictures(torch.tensor(triples[end].to_numpy())) for end in ("source", "target"))
    pair = image_trigger("white-box"), text_trigger("mignneko")
    sampling = Sampling(steps=5, text_guidance=1.5, image_guidance=1.2, batch=4)
    edited = edits_under_coalitions(pipe, faces, triples, *pair, sampling, 0)
    success = edit_succeeds(edited, attack_target("sailing boat")(source)[:, None], clean[:, None])
    assert success[:, 3].sum() >= 3 and not success[:, 0].any()


def test_phi_and_cti_by_hand_are_the_librarys():
    (by_hand,) = (source for source in CELLS if source.startswith("z = embed("))
    draw = torch.Generator().manual_seed(3)
    pictures = torch.rand(6, 3, 4, 4, generator=draw)
    weight = torch.randn(48, 7, generator=draw)
    names = {"torch": torch, "edited": pictures[:4], "target": pictures[4:5], "clean": pictures[5:]}
    names["embed"] = lambda images: images.flatten(1) @ weight
    for source in CELLS:
        exec("\n".join(line for line in source.splitlines() if line.startswith("from lib.metrics import")), names)
    names["F"] = torch.nn.functional
    exec(by_hand, names)
    z = names["embed"](pictures)
    v = coalition_values(z[None, :4], z[4:5], z[5:])
    torch.testing.assert_close(names["v"], v[0])
    for name, value in attribution(v).items():
        torch.testing.assert_close(torch.tensor([names[name]]), value, rtol=1e-5, atol=1e-6)
