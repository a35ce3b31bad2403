"""What several of these tests look at, made once: the smoke profile's figures, what one process learns."""

import json
import sys
from pathlib import Path

import papermill
import pytest
import worker
from launches import TASKS
from pipeline import EXECUTED, FEWER, IN_FULL, Smoke, figures

from lib.runtime import store
from lib.settings.paths import ROOT
from notebooks import NOTEBOOKS


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Smoke:
    """Every notebook once. Those of the studies in full compute alone what the pipeline would spread over processes, of
    `FEWER` questions and attacks."""
    folder = tmp_path_factory.mktemp("smoke")
    out, executed, parameters = folder / "figures", {}, {}
    figures(out)
    for path in NOTEBOOKS:
        given = {"profile": "smoke", "seed": 0, "device": "cpu", "out": str(out), "overrides": {}}
        executed[path.stem] = EXECUTED / path.name
        if path.stem in IN_FULL:
            executed[path.stem], given["overrides"] = folder / path.name, FEWER
            papermill.execute_notebook(str(path), executed[path.stem], given, cwd=str(ROOT), progress_bar=False)
        parameters[path.stem] = given
    return Smoke(out, executed, parameters)


@pytest.fixture(scope="session")
def one_process(tmp_path_factory, models) -> Path:
    """What one process, this one, makes of every task of `worker`."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "models.json").write_text(json.dumps(models))
    worker.MDLMS.update(worker.mdlms(folder / "checkpoints"))
    questions = sys.modules["lib.tasks.questions"]
    with pytest.MonkeyPatch.context() as patch:  # what tasks set in a process of their own
        patch.setattr(store, "PULSE", store.PULSE)
        patch.setattr(questions, "together", questions.together)
        for task in TASKS:
            getattr(worker, task)(folder)
    return folder
