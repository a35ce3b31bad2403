"""What the profile's base models can do (`lib.base.quality`), measured once and then read from the store.

    measured_editor(run)            # the base editor's
    measured_editor(run, "control")
"""

from __future__ import annotations

from types import ModuleType

import pandas as pd

import lib.mmmu
from lib import answering, caching, decoding, editing, evaluation, intervals, mmmu_scoring
from lib.attacks import data_spec
from lib.base import quality
from lib.base.quality import clip_quality, editor_quality, mdlm_quality
from lib.config import Run, model_source
from lib.kernels import confidence
from lib.mmmu import with_mmmu
from lib.models import anyres, clip, editor, llada, llada_v, mdlm, minilm
from lib.models.clip import Clip
from lib.models.editor import load_editor
from lib.models.loading import base_mdlm, base_settings
from lib.store import code_digest, folder_digest
from lib.study_data import digest, edit_data, question_data


def measured_clip(run: Run) -> pd.DataFrame:
    """`clip_quality` among `measure.people` held-out faces, the same whatever the run's seed."""
    people = run.profile.measure.people
    spec = data_spec(run, "edits") | {"seed": None, "people": people} | _made_by(run, "clip", clip)

    def make() -> pd.DataFrame:
        return clip_quality(Clip.load(run.profile.models.clip, run.device), edit_data(run), people)

    return run.store.table("clip-quality", spec, make)


def measured_editor(run: Run, name: str = "editor") -> pd.DataFrame:
    """`editor_quality` of the profile's "editor" or "control" on `measure.edits` held-out edits."""
    count, sampling = run.profile.measure.edits, run.profile.collapse.sampling
    spec = data_spec(run, "edits") | {"edits": count, "sampling": sampling.model_dump(mode="json")}
    spec |= _made_by(run, name, editing, editor, evaluation, minilm)

    def make() -> pd.DataFrame:
        pipe = load_editor(getattr(run.profile.models, name), run.device)
        return editor_quality(pipe, edit_data(run), sampling, count, run.seed)

    return run.store.table("editor-quality", spec, make)


def measured_mdlm(run: Run) -> pd.DataFrame:
    """`mdlm_quality` on `measure.questions` test questions, and MMMU's accuracy where the profile names it."""
    count, threshold, mmmu = run.profile.measure.questions, run.profile.disp.threshold, run.profile.data.mmmu
    spec = data_spec(run, "questions") | {"questions": count, "threshold": threshold}
    spec |= _made_by(run, "mdlm", answering, caching, confidence, decoding, evaluation, mdlm)
    if base_settings(run.profile):
        spec["published"] = code_digest(anyres, llada, llada_v)
    if mmmu:
        spec["mmmu"] = [digest(mmmu), code_digest(lib.mmmu, mmmu_scoring)]

    def make() -> pd.DataFrame:
        model = base_mdlm(run.profile, run.device)
        asked = (question_data(run, split) for split in ("train", "test"))
        table = mdlm_quality(model, *asked, count, threshold)
        return with_mmmu(run, model, table, run.store.work("mdlm-quality", spec))

    return run.store.table("mdlm-quality", spec, make)


def _made_by(run: Run, name: str, *modules: ModuleType) -> dict[str, str]:
    """The model, by what its files hold, and the code that measures it."""
    model = folder_digest(model_source(getattr(run.profile.models, name)))
    return {"model": model, "code": code_digest(quality, intervals, *modules)}
