import pandas as pd
import pytest
import tiny

from lib.models.clip import Clip
from lib.models.editor import load_editor
from lib.studies.base_models import measured
from lib.studies.base_models.measured import measured_clip, measured_editor, measured_mdlm
from lib.studies.base_models.quality import clip_quality, editor_quality, mdlm_quality
from lib.studies.data import edit_data
from lib.studies.models import base_mdlm
from lib.studies.questions import question_data
from lib.studies.run import with_profile

ALL = {
    "clip": (measured_clip, {"measure": {"people": 5}}),
    "editor": (measured_editor, {"collapse": {"sampling": {"steps": 1}}}),
    "control": (lambda run: measured_editor(run, "control"), {"measure": {"edits": 3}}),
    "mdlm": (measured_mdlm, {"disp": {"threshold": 0.5}}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    return tiny.short_run(tmp_path_factory.mktemp("run"), models)


@pytest.fixture
def counted(monkeypatch):
    """How often each quality is measured anew."""
    calls = []
    for name in ("clip_quality", "editor_quality", "mdlm_quality"):
        made = getattr(measured, name)
        monkeypatch.setattr(measured, name, lambda *given, made=made, name=name: calls.append(name) or made(*given))
    return calls


def direct(run):
    models, measure, faces = run.profile.models, run.profile.measure, edit_data(run)
    sampling, asked = run.profile.collapse.sampling, (question_data(run, split) for split in ("train", "test"))
    editors = {name: load_editor(getattr(models, name)) for name in ("editor", "control")}
    yield "clip", clip_quality(Clip.load(models.clip), faces, measure.people)
    for name, pipe in editors.items():
        yield name, editor_quality(pipe, faces, sampling, measure.edits, run.seed)
    yield "mdlm", mdlm_quality(base_mdlm(run.profile), *asked, measure.questions, run.profile.disp.threshold)


def test_what_is_measured_is_the_quality(run):
    for name, table in direct(run):
        pd.testing.assert_frame_equal(ALL[name][0](run), table, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("clip", lambda folder: tiny.clip(3).save(folder)),
        ("editor", lambda folder: tiny.editor(3).save_pretrained(folder)),
        ("mdlm", lambda folder: tiny.mdlm(3, prompt_length=48, response_length=72).save(folder)),
    ],
)
def test_it_is_measured_once_and_anew_where_a_setting_or_the_model_differs(name, save, run, tmp_path, counted):
    measure, other = ALL[name]
    first = measure(run)
    counted.clear()
    assert measure(run).equals(first) and not counted
    measure(with_profile(run, other))
    assert len(counted) == 1
    save(str(tmp_path / name))
    measure(with_profile(run, {"models": {name: str(tmp_path / name)}}))
    assert len(counted) == 2


def test_clip_is_measured_once_whatever_the_seed_and_an_editor_for_each(run, counted):
    again = with_profile(run, {}, seed=1)
    for measure in (measured_clip, measured_editor):
        measure(run)
    counted.clear()
    for measure in (measured_clip, measured_editor):
        measure(again)
    assert counted == ["editor_quality"]
