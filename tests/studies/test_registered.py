"""One's own models, data sets and defences, registered by name: what studies make of them, and what enters keys."""

import json
import shutil

import pytest
import tiny

from lib import data, defences
from lib.data import face_questions, make_faces
from lib.data.registry import EDITS, QUESTIONS
from lib.defences import Defended
from lib.defences.registry import OWN
from lib.models.loading import KINDS, own_kind
from lib.models.loading import register as register_kind
from lib.models.mdlm import Mdlm
from lib.settings import names
from lib.settings.load import load_profile
from lib.studies.attacks.mdlm import mdlm_spec
from lib.studies.data import data_spec, edit_data, titles
from lib.studies.disp.defences import DEFENCES, defence_rows, defence_spec, defended
from lib.studies.models import base_mdlm
from lib.studies.questions import question_data

pytestmark = pytest.mark.usefixtures("untyped")


class Own(Mdlm):
    """Ours by another name."""


def few_faces(size):
    return make_faces(size, train=20, test=6)


def few_questions(split, size):
    return face_questions(few_faces(size), split)


def fewer_questions(split, size):
    return face_questions(make_faces(size, train=10, test=4), split)


def silent(defender):
    """Refuses every question."""
    return Defended(defender.suspect(), ask=lambda asked, threshold, work: [""] * len(asked))


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for catalogue, listed in ((QUESTIONS, names.QUESTION_SETS), (EDITS, names.EDIT_SETS), (OWN, names.DEFENCES)):
        for name in list(catalogue):
            del catalogue[name]
            listed.remove(name)
    KINDS.pop("own", None)


def test_own_questions_are_asked_and_enter_keys_by_their_source(tmp_path):
    with pytest.raises(ValueError, match="data.questions='few' is refused: it must be one of .*easy-vqa"):
        load_profile("smoke", {"data": {"questions": "few"}})
    data.register_questions("few", few_questions)
    run = tiny.run(tmp_path, data={"questions": "few"})
    assert len(question_data(run, "train").table) == len(few_questions("train", 64).table)
    assert titles(run)[1] == "few: questions"
    before, faces = mdlm_spec(run), tiny.run(tmp_path)
    unrelated = mdlm_spec(faces)
    data.register_questions("few", fewer_questions)
    assert len(question_data(run, "train").table) == len(fewer_questions("train", 64).table)
    assert mdlm_spec(run) != before and mdlm_spec(faces) == unrelated


def test_own_edits_are_those_of_the_collapse_study(tmp_path):
    data.register_edits("few", few_faces)
    run = tiny.run(tmp_path, data={"edits": "few"})
    assert edit_data(run).triples.equals(few_faces(64).triples) and titles(run)[0] == "few: edits"
    assert data_spec(run, "edits") != data_spec(tiny.run(tmp_path), "edits")


def test_an_own_kind_of_model_loads_by_its_model_type(tmp_path, models):
    folder = tmp_path / "own"
    shutil.copytree(models["mdlm"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    run = tiny.run(tmp_path, models={"mdlm": str(folder)})
    with pytest.raises(ValueError, match="model_type='own' of .* must be one of mdlm"):
        base_mdlm(run.profile)
    register_kind("own", Own)
    assert type(base_mdlm(run.profile)) is Own and own_kind(str(folder)) is Own
    assert own_kind(models["mdlm"]) is None and "kind" in mdlm_spec(run) and "kind" not in mdlm_spec(tiny.run(tmp_path))


def test_an_own_defence_gets_rows_beside_ours(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    with pytest.raises(ValueError, match="disp_grid.main.0='silent' is refused"):
        load_profile("smoke", {"disp_grid": {"main": ["silent"]}})
    before = defence_spec(run, "no defence")
    defences.register("silent", silent)
    load_profile("smoke", {"disp_grid": {"main": ["silent", "no defence"]}})
    rows = defence_rows(run, "silent").set_index("metric")["value"]
    assert defended(run, "silent").knows == "nothing" and rows["ASR with trigger"] == 0.0
    assert defence_spec(run, "no defence") == before and "silent" not in DEFENCES


@pytest.mark.parametrize(
    ("register", "name", "entry", "said"),
    [
        (data.register_questions, "easy-vqa", few_questions, "name is 'easy-vqa': it must be none of ours"),
        (data.register_edits, "few", "faces", "load is 'faces': it must be a function"),
        (defences.register, "DiSP", silent, "name is 'DiSP': it must be none of ours, as no defence, DiSP"),
        (defences.register, "silent", 3, "defence is 3: it must be a function"),
        (register_kind, "mdlm", Own, "model_type is 'mdlm': it must be another than ours"),
        (register_kind, "own", dict, "kind is <class 'dict'>: it must be a subclass of Mdlm"),
    ],
)
def test_a_name_of_ours_and_what_cannot_be_used_are_refused(register, name, entry, said):
    with pytest.raises(ValueError, match=said):
        register(name, entry)
