"""Every notebook at smoke scale as the pipeline runs it: on the committed base models and one store in build/."""

import json

import nbformat
import pandas as pd
import papermill
import pytest
from pipeline import IN_FULL

from lib.settings.paths import ROOT
from lib.studies.report import COLUMNS
from notebooks import FIGURES, NOTEBOOKS, code_cells

WIDGETS = {"00_quickstart": 1, "03_collapse_analysis": 1, "04_disp_purification": 1, "06_disp_in_full": 1}
REFUSED = [
    ({"profile": "labtop"}, "profile 'labtop' does not exist: choose one of disp-authors, laptop, paper, smoke"),
    ({"seed": -1}, "seed=-1 must be an integer from 0"),
    ({"overrides": {"disp": {"rates": 0.1}}}, "disp.rates is not a known key"),
    ({"overrides": {"collapse": {"rate": 1.5}}}, "collapse.rate=1.5 is refused"),
    ({"profile": "paper"}, "models.mdlm='data/local/llada-v' must be a folder that is there"),
    ({"device": "gpu"}, "device='gpu' is not a device"),
]


def test_there_is_every_notebook_of_the_studies():
    assert {path.stem for path in NOTEBOOKS} >= set(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_notebook_is_clean(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and "?" in notebook.cells[0].source.splitlines()[0]
    first, second = code_cells(notebook)[:2]
    assert first.metadata.tags == ["parameters"]
    assert set(papermill.inspect_notebook(str(path))) == {"profile", "seed", "device", "out", "overrides"}
    assert f'run_parameters("{path.stem}", profile, seed, device, out, overrides)' in second.source
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        assert "\ndef " not in f"\n{cell.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_leaves_its_files(path, smoke):
    cells = code_cells(nbformat.read(smoke.executed[path.stem], 4))
    assert str(smoke.out) in cells[1].source and "injected-parameters" in cells[1].metadata.tags  # of this very run
    assert all(cell.execution_count for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    folder = smoke.out / path.stem
    drawn = {file.stem for file in folder.glob("*.pdf")}
    assert drawn >= FIGURES.get(path.stem, set()) and drawn
    for name in drawn:
        assert (folder / f"{name}.png").stat().st_size > 1000
        assert len(pd.read_csv(folder / f"{name}.csv"))
    shown = [o.data for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    widget = "application/vnd.jupyter.widget-view+json"
    assert len([data for data in shown if widget not in data]) == len(drawn)  # each figure once
    assert len([data for data in shown if widget in data]) == WIDGETS.get(path.stem, 0)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notebook"] == path.stem and manifest["profile"] == "smoke"
    assert manifest["parameters"]["seed"] == 0 and manifest["seconds"] > 0 and manifest["code"]
    copy = folder / path.name  # of those that the pipeline ran
    assert set(manifest["files"]) == {file.name for file in folder.iterdir()} - {"manifest.json", copy.name}
    assert copy.is_file() == (path.stem not in IN_FULL)
    headline = pd.read_csv(folder / "headline.csv")
    assert list(headline) == COLUMNS and set(headline["notebook"]) <= {path.stem}
    known = headline[~headline["interval"].fillna("").isin(("", "none: one seed"))]
    assert (known["low"] <= known["value"]).all() and (known["value"] <= known["high"]).all()
    assert headline.drop(known.index)[["low", "high"]].isna().all(axis=None) and (headline["seeds"] >= 1).all()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_bad_parameter_is_refused_at_the_start_of_the_first_cell(path):
    """The first two code cells as the kernel would run them, in this process: no kernel to wait for."""
    parameters, first = (cell.source for cell in code_cells(nbformat.read(path, 4))[:2])
    for change, message in REFUSED:
        names = {}
        exec(parameters, names)
        names.update(change)
        with pytest.raises(ValueError) as refusal:
            exec(first, names)
        assert message in str(refusal.value) and "\n" not in str(refusal.value)
        assert "run" not in names and "torch" not in names  # nothing else has been done


def test_papermill_stops_there_with_the_same_message(tmp_path):
    path, (change, message) = NOTEBOOKS[0], REFUSED[-1]
    done = tmp_path / "done.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as stopped:
        papermill.execute_notebook(
            str(path), str(done), change | {"out": str(tmp_path / "out")}, cwd=str(ROOT), progress_bar=False
        )
    assert stopped.value.ename == "ValueError" and message in stopped.value.evalue
    ran = [cell for cell in code_cells(nbformat.read(done, 4)) if cell.execution_count]
    assert "run_parameters" in ran[-1].source and not (tmp_path / "out").exists()
