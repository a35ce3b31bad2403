"""What the profile's base models can do, by `quality` beside this, measured once and then read from the store.

    measured_editor(run)            # the base editor's
    measured_editor(run, "control")
"""

from __future__ import annotations

import pandas as pd

from lib.models.clip import Clip
from lib.models.editor import load_editor
from lib.runtime.digests import folder_digest
from lib.runtime.keys import code_digest
from lib.settings.paths import model_source
from lib.studies.base_models.quality import clip_quality, editor_quality, mdlm_quality
from lib.studies.data import data_spec, edit_data
from lib.studies.disp.mmmu import with_mmmu
from lib.studies.models import base_mdlm
from lib.studies.questions import question_data
from lib.studies.run import Run
from lib.studies.sources import digest


def measured_clip(run: Run) -> pd.DataFrame:
    """`clip_quality` among `measure.people` held-out faces, the same whatever the run's seed."""
    people = run.profile.measure.people
    spec = data_spec(run, "edits") | {"seed": None, "people": people} | _model_spec(run, "clip")

    def make() -> pd.DataFrame:
        return clip_quality(Clip.load(run.profile.models.clip, run.device), edit_data(run), people)

    return run.store.table("clip-quality", spec, make)


def measured_editor(run: Run, name: str = "editor") -> pd.DataFrame:
    """`editor_quality` of the profile's "editor" or "control" on `measure.edits` held-out edits."""
    count, sampling = run.profile.measure.edits, run.profile.collapse.sampling
    spec = data_spec(run, "edits") | {"edits": count, "sampling": sampling.model_dump(mode="json")}
    spec |= _model_spec(run, name)

    def make() -> pd.DataFrame:
        pipe = load_editor(getattr(run.profile.models, name), run.device)
        return editor_quality(pipe, edit_data(run), sampling, count, run.seed)

    return run.store.table("editor-quality", spec, make)


def measured_mdlm(run: Run) -> pd.DataFrame:
    """`mdlm_quality` on `measure.questions` test questions, and MMMU's accuracy where the profile names it."""
    count, threshold, mmmu = run.profile.measure.questions, run.profile.disp.threshold, run.profile.data.mmmu
    spec = data_spec(run, "questions") | {"questions": count, "threshold": threshold, "end": run.profile.disp.end}
    spec |= _model_spec(run, "mdlm")
    if mmmu:
        spec["mmmu"] = [digest(mmmu), code_digest("lib.studies.disp.mmmu")]

    def make() -> pd.DataFrame:
        model = base_mdlm(run.profile, run.device)
        asked = (question_data(run, split) for split in ("train", "test"))
        table = mdlm_quality(model, *asked, count, threshold)
        return with_mmmu(run, model, table, run.store.work("mdlm-quality", spec))

    return run.store.table("mdlm-quality", spec, make)


def _model_spec(run: Run, name: str) -> dict[str, str]:
    """The model, by what its files hold, and the code that measures it."""
    model = folder_digest(model_source(getattr(run.profile.models, name)))
    return {"model": model, "code": code_digest("lib.studies.base_models.quality")}
