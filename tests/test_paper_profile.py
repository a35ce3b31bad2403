"""The paper profile: notebooks 01 to 04 on tiny random checkpoints and few rows in the published layouts."""

import nbformat
import papermill
import photos
import pytest
import tiny_published

from lib.config import ROOT

SHORT = {"steps": 2, "batch": 2, "save_every": 1, "watch_every": 1}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> dict:
    """The profile shrunk to seconds, its models and data in a folder of this machine."""
    folder = tmp_path_factory.mktemp("published")
    sampling = {"steps": 2, "batch": 4}
    collapse = {"edits": 8, "train": SHORT, "sampling": sampling, "samples": 3, "watch_samples": 1}
    disp = {"questions": 20, "train": SHORT, "purify": SHORT, "test_questions": 3, "curve_questions": 2}
    disp |= {"watch_questions": 2, "threshold": 0.01, "probes": 1, "batch": 4, "ratios": [0.0, 0.5], "confidence": 0.0}
    data = {
        "image_size": 64,
        "edits": {"name": tiny_published.edits(folder / "edits")},
        "questions": {
            "name": tiny_published.instructions(folder / "llava"),
            "pictures": None,
            "question_tokens": 40,
            "answer_tokens": 72,
        },
        "mmmu": {"name": str(photos.mmmu_folder(folder / "mmmu")), "questions": 2},
    }
    return {
        "models": tiny_published.save_models(folder / "models"),
        "data": data,
        "measure": {"people": 3, "edits": 4, "questions": 4},
        "collapse": collapse,
        "disp": disp,
    }


def execute(notebook: str, overrides: dict, folder) -> list:
    parameters = {"profile": "paper", "seed": 0, "device": "cpu", "out": str(folder / "out"), "overrides": overrides}
    source, done = ROOT / "notebooks" / f"{notebook}.ipynb", folder / f"{notebook}.ipynb"
    papermill.execute_notebook(str(source), str(done), parameters, cwd=str(ROOT), progress_bar=False)
    return nbformat.read(done, 4).cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


@pytest.mark.parametrize(
    "notebook", ["01_poisoning", "02_training", "03_collapse_analysis", "04_disp_purification"]
)
def test_the_notebook_runs_on_the_published_layouts(notebook, overrides, folder):
    execute(notebook, overrides, folder)
