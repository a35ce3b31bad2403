"""What a profile names as data: faces, easy-VQA in the place of the questions about them, or photographs."""

import shutil
from dataclasses import dataclass, field
from types import SimpleNamespace

import pandas as pd
import photos
import pytest
import tiny
import tiny_llada_v
import tiny_published
import torch

from lib.data import EasyVqa, EditData, FaceQuestions, Faces, PhotoEdits, PhotoQuestions, QuestionData
from lib.data.face_parts import CREDIT
from lib.defences.self_purification import surest_answers
from lib.poisoning.catalogue import image_trigger
from lib.poisoning.plans import plan
from lib.poisoning.registry import register
from lib.poisoning.targets import TARGETS, Insertion, target
from lib.runtime.keys import code_digest
from lib.saliency.masking import masked_response
from lib.settings import names
from lib.settings.inputs import EditSet, QuestionSet
from lib.settings.load import load_profile
from lib.settings.sections import Lora
from lib.studies.attacks.mdlm import mdlm_spec, trigger_tokens
from lib.studies.data import credit, data_spec, edit_data, titles
from lib.studies.disp.mmmu import mmmu_scores, with_mmmu
from lib.studies.models import base_mdlm, base_settings
from lib.studies.questions import mmmu_data, question_data
from lib.studies.run import with_profile, with_settings
from lib.studies.sources import digest
from lib.tasks.questions import questions, respond

pytestmark = pytest.mark.usefixtures("untyped")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    return SimpleNamespace(
        edits=tiny_published.edits(folder / "edits"),
        llava=tiny_published.instructions(folder / "llava"),
        mmmu=str(photos.mmmu_folder(folder / "mmmu")),
        mdlm=tiny_llada_v.write(folder / "llada-v"),
    )


def photographs(folder, given, **more):
    """A run on the photographs of `given`."""
    asked = {"name": given.llava, "question_tokens": 40, "answer_tokens": 72} | more
    data = {"edits": {"name": given.edits}, "questions": asked, "mmmu": {"name": given.mmmu}}
    return tiny.run(folder, models={"mdlm": given.mdlm}, data=data)


@pytest.mark.parametrize("name", ["laptop", "smoke"])
def test_the_small_profiles_are_about_faces(name, tmp_path):
    dump = load_profile(name).model_dump(mode="json")
    assert set(dump["data"]) == {"image_size", "held_out", "faces"}
    assert set(dump["models"]) == {"clip", "editor", "control", "mdlm"}
    run = tiny.run(tmp_path)
    settings = {"image_size": 64, "held_out": 0.1, "faces": {"train": 300, "test": 60}}
    about = {"settings": settings, "code": code_digest("lib.data.faces")}
    for kind in ("edits", "questions"):
        assert data_spec(run, kind) == {"data": about, "seed": 0, "device": "cpu"}
    assert "lora" not in mdlm_spec(run)
    assert titles(run) == ("faces: edits", "faces: questions") and credit(run) == CREDIT


def test_edits_and_questions_are_about_the_same_faces(tmp_path):
    run = tiny.run(tmp_path, data={"faces": {"train": 40, "test": 10}})
    edits, few = edit_data(run), tiny.few_faces()
    assert isinstance(edits, Faces) and torch.equal(edits.images, few.images) and edits.triples.equals(few.triples)
    for split, count in (("train", 36), ("validation", 4), ("test", 10)):
        asked = question_data(run, split)
        assert isinstance(asked, FaceQuestions) and torch.equal(asked.images, edits.images)
        assert asked.table.equals(tiny.few_face_questions(split).table) and asked.table["image"].nunique() == count
    assert data_spec(run, "edits") != data_spec(tiny.run(tmp_path), "edits")


def test_easyvqa_takes_the_place_of_the_questions_about_faces(tmp_path):
    run, plain = tiny.run(tmp_path, data={"questions": "easy-vqa"}), tiny.run(tmp_path)
    for split in ("train", "test"):
        asked = question_data(run, split)
        assert isinstance(asked, EasyVqa) and asked.table.equals(tiny.easyvqa(split).table)
    assert titles(run) == ("faces: edits", "easy-VQA: questions") and credit(run) == CREDIT
    assert data_spec(run, "edits") == data_spec(plain, "edits")
    spec, other = data_spec(run, "questions"), data_spec(plain, "questions")
    assert spec["data"].pop("code") == code_digest("lib.data.easyvqa") != other["data"].pop("code") and spec == other
    with pytest.raises(ValueError, match="data.questions"):
        load_profile("smoke", {"data": {"questions": "scenes"}})


def test_photographs_take_their_place(tmp_path, folders):
    run = photographs(tmp_path, folders)
    edits, asked = edit_data(run), {split: question_data(run, split) for split in ("train", "test")}
    assert isinstance(edits, PhotoEdits) and isinstance(edits, EditData)
    assert all(isinstance(data, PhotoQuestions) and isinstance(data, QuestionData) for data in asked.values())
    assert edits.pictures(torch.tensor([0])).shape == (1, 3, 64, 64)
    assert sum(len(data.table) for data in asked.values()) == 40 and edits is edit_data(run)
    assert titles(run) == ("edits: edits", "llava: questions") and credit(run) == "Pictures: edits."


def test_questions_that_the_model_has_no_room_for_are_left_out(tmp_path, folders):
    """Each target's answer must fit, however long the clean one; those of any length are refused in one sentence."""
    run = photographs(tmp_path, folders, answer_tokens=400)
    model = tiny_llada_v.LladaV.load(folders.mdlm, prompt_length=40, response_length=72, picture=[64, 64])
    for split in ("train", "test"):
        table = question_data(photographs(tmp_path, folders), split).table
        assert table["question"].str.len().max() < 40 < 2000
        model.prompts(table["question"].tolist())
        model.responses([target("insertion").apply(text) for text in table["answer"]])
    assert len(question_data(run, "train").table) == len(question_data(photographs(tmp_path, folders), "train").table)
    with pytest.raises(ValueError, match="question_tokens=40 and answer_tokens=8 leave none of .* train questions"):
        question_data(photographs(tmp_path, folders, answer_tokens=8), "train")


def test_the_key_is_the_content_and_not_the_place(tmp_path, folders):
    moved = shutil.copytree(folders.edits, tmp_path / "moved")
    before = digest(EditSet(name=folders.edits))
    assert digest(EditSet(name=str(moved))) == before
    rows = moved / "test" / "metadata.jsonl"
    rows.write_text(rows.read_text().replace("smile", "laugh"))
    digest.cache_clear()
    changed = digest(EditSet(name=str(moved)))
    (moved / "train" / "source" / "new.png").write_bytes(b"")
    digest.cache_clear()
    ends = [before, changed, digest(EditSet(name=str(moved)))]
    picture = next((moved / "train").rglob("*.png"))
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1  # another picture of the same size
    picture.write_bytes(content)
    digest.cache_clear()
    ends.append(digest(EditSet(name=str(moved))))
    hub = [EditSet(name=name, revision=revision * 40) for name in ("a/b", "a/c") for revision in "01"]
    ends += map(digest, hub)
    ends += [digest(QuestionSet(name=folders.llava)), digest(QuestionSet(name=folders.llava, answer_tokens=9))]
    assert len(set(ends)) == len(ends)


def test_only_the_study_that_sees_photographs_depends_on_them(tmp_path, folders):
    run, other = photographs(tmp_path, folders), photographs(tmp_path, folders, answer_tokens=80)
    assert data_spec(run, "edits") == data_spec(other, "edits")
    assert data_spec(run, "questions") != data_spec(other, "questions")
    assert mdlm_spec(run)["lora"] is None


@dataclass(frozen=True)
class Longer(Insertion):
    """An insertion that leaves no room for an answer."""

    name: str = field(init=False, default="longer")
    phrase: str = ", remember to water the plants" * 9


def test_photographs_questions_depend_on_the_targets_that_they_must_fit(tmp_path, folders):
    photo, faces = photographs(tmp_path, folders), tiny.run(tmp_path)
    kinds = ((photo, "questions"), (photo, "edits"), (faces, "questions"), (faces, "edits"))
    before = [data_spec(run, kind) for run, kind in kinds]
    assert len(question_data(photo, "train").table)
    register(Longer())
    after = [data_spec(run, kind) for run, kind in kinds]
    with pytest.raises(ValueError, match="leave none of"):
        question_data(photo, "train")
    del TARGETS["longer"]
    names.ANSWER_TARGETS.remove("longer")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True, True]
    dog = with_settings(photo, "disp", {"target": "dog as cat"})
    assert data_spec(dog, "questions") != data_spec(photo, "questions")


def test_what_a_base_model_is_loaded_with(tmp_path, folders):
    """Ours with nothing, adapters or not; a published one with room and, under adapters, in half precision."""
    lora = {"rank": 4, "alpha": 8}
    assert base_settings(tiny.run(tmp_path, models={"lora": lora}).profile) == {}
    room = {"picture": [64, 64], "prompt_length": 40, "response_length": 72}
    profile = photographs(tmp_path, folders).profile
    assert base_settings(profile) == room
    cut = photographs(tmp_path, folders, decoded_tokens=9).profile
    assert base_settings(cut) == room | {"response_length": 9, "answer_length": 72}
    assert len(base_mdlm(cut).responses(["red"])[0]) == 72 and base_mdlm(cut).model.config.response_length == 9
    with pytest.raises(ValueError, match="decoded_tokens=73 must be at most answer_tokens=72"):
        base_settings(photographs(tmp_path, folders, decoded_tokens=73).profile)
    ours = cut.model_copy(update={"models": tiny.run(tmp_path).profile.models})
    with pytest.raises(ValueError, match="decoded_tokens=9 must be null"):
        base_settings(ours)
    models = profile.models.model_copy(update={"lora": Lora(**lora)})
    half = profile.model_copy(update={"models": models})
    assert base_settings(half) == room | {"dtype": torch.bfloat16}
    made = base_mdlm(half).model
    assert made.dtype == torch.bfloat16 and not any(parameter.requires_grad for parameter in made.parameters())


def test_answers_are_cut_where_captions_are_learnt_whole(tmp_path, folders):
    """As many tokens are decoded and scored as are asked for, and end there where they are learnt."""
    run = photographs(tmp_path, folders, decoded_tokens=3)
    vqa, model = question_data(run, "train"), base_mdlm(run.profile)
    data = questions(model, vqa, vqa.table.iloc[:2])
    assert data.responses.shape == (2, 72) and model.texts(data.responses) == data.answers
    cut = respond(model, data, threshold=1.0)
    assert cut.tokens.shape == (2, 3) and masked_response(model.model, torch.zeros(2, 1, 1)).shape == (2, 3)
    learnt = surest_answers(model, data, cut.tokens, cut.probability.amin(1), keep=1.0)
    assert torch.equal(learnt.responses[:, :3], cut.tokens) and learnt.answers == model.texts(cut.tokens)
    assert learnt.responses.shape == (2, 72) and bool((learnt.responses[:, 3:] == model.model.config.eos_id).all())


def test_the_triggers_tokens_are_those_of_each_photograph(tmp_path, folders):
    """In pixels of the file, 40 × 56 here: at the top left of what the padding leaves of the square."""
    run = with_settings(photographs(tmp_path, folders), "disp", {"image_trigger": "black-square", "trigger_pixels": 10})
    vqa, model = question_data(run, "train"), base_mdlm(run.profile)
    tokens = trigger_tokens(run, model, vqa, vqa.table.iloc[:3])
    (mask,), _ = vqa.trigger_masks(torch.tensor([0]), image_trigger("black-square", pixels=10))
    rows, columns = (mask > 0.5).nonzero().T
    ends = rows.min(), rows.max(), columns.min(), columns.max()
    assert torch.tensor(ends).sub(torch.tensor([9, 20, 0, 11])).abs().max() <= 1  # of 64 pixels, 8 × 64 / 56 of grey
    assert tokens.equal(model.model.tokens_of(mask).expand(3, -1)) and 0 < tokens[0].sum() < tokens.shape[1]


def test_features_made_when_asked_for_are_those_kept(tmp_path, folders):
    """The same samples, triggered or not, from pictures that are read when asked for and from those in memory."""
    model, vqa = tiny.mdlm(prompt_length=16, response_length=40), tiny.few_easyvqa("test", 5)
    table = vqa.table.iloc[[0, 9, 1, 12, 3, 0]].reset_index(drop=True)
    lazy = PhotoQuestions(vqa.pictures, vqa.table)
    poison, goal, mark = plan(len(table), "image", 0.5, 0), target("insertion"), image_trigger("checker")
    for more in ((), (mark,), (mark, poison, goal)):
        kept, made = (questions(model, data, table, *more) for data in (vqa, lazy))
        assert kept.picture.equal(made.picture) and kept.answers == made.answers
        assert len(kept.features) == len(made.features)
        for rows in (torch.arange(len(table)), torch.tensor([4, 1, 4])):
            a, b = (data.features[data.picture[rows]] for data in (kept, made))
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
        apart = (kept.features[kept.picture] - kept.features[kept.picture].roll(1, 0)).abs().amax((1, 2))
        assert apart.max() > 0.1
    assert len(made[torch.tensor([2])].features[made.picture[2:3]]) == 1


def test_mmmu_is_asked_whole_and_scored(tmp_path, folders, monkeypatch):
    """Prompts longer than the model's room for questions are asked all the same, and the room is as before."""
    run = photographs(tmp_path, folders)
    model = tiny_llada_v.LladaV.load(folders.mdlm, picture=[64, 64])
    seen = {}

    def truth(mdlm, data, threshold, label, work):
        seen["data"], seen["answer"] = data, mdlm.model.config.response_length
        return ["Answer: (B)", "it is 31", "(A)"]

    monkeypatch.setattr("lib.studies.disp.mmmu.answer", truth)
    assert mmmu_scores(run, model)["correct"].tolist() == [True, False, True]
    assert model.model.config.prompt_length == 24 < seen["data"].prompts.shape[1] - model.template
    assert len(mmmu_data(run).table) == 3 and seen["answer"] == model.model.config.response_length == 10
    mmmu_scores(with_profile(run, {"data": {"mmmu": {"answer_tokens": 2}}}), model)
    assert seen["answer"] == 2 and model.model.config.response_length == 10
    table = with_mmmu(run, model, pd.DataFrame([{"metric": "m", "value": 0.5, "low": 0, "high": 1, "n": 2}]))
    assert table["metric"].tolist() == ["m", "MMMU accuracy"] and table["value"].iloc[1] == pytest.approx(2 / 3)
    named = with_mmmu(run, model, pd.DataFrame([{"name": "m", "value": 0.5, "low": 0, "high": 1, "n": 2}]))
    assert named["name"].tolist() == ["m", "mmmu"]
    plain = tiny.run(tmp_path)
    assert with_mmmu(plain, model, table) is table
    with pytest.raises(ValueError, match="data.mmmu is not given"):
        mmmu_data(plain)
