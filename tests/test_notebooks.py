"""Every notebook at smoke scale through papermill, on the committed base models and one store in build/."""

import json

import nbformat
import pandas as pd
import papermill
import pytest

from lib.config import ROOT
from lib.report import COLUMNS

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {
    "01_poisoning": {"triggers", "poisoned_edits", "poisoned"},
    "02_training": {"edits", "training"},
    "03_collapse_analysis": {"coalitions", "attribution"}
    | {f"samples_{part}_white-box_{protocol}" for part in ("pair", "control") for protocol in ("or", "and")},
    "04_disp_purification": {"saliency", "ratios", "purification", "targets", "rates", "ablation"},
    "05_collapse_in_full": {"grid", "cti", "factors", "dominance", "dynamics", "mdlm", "remedies", "detection"},
    "06_disp_in_full": {"defences", "rates", "targets", "ablation", "attacks_defended", "words", "editor", "gains"}
    | {"saliency_disp-data-easy-vqa-0", "defences_elsewhere", "targets_elsewhere"}
    | {"targets_triggers", "targets_attackers"},
}
WIDGETS = {"03_collapse_analysis": 1, "04_disp_purification": 1, "06_disp_in_full": 1}
REFUSED = [
    ({"profile": "labtop"}, "profile 'labtop' does not exist: choose one of laptop, paper, smoke"),
    ({"seed": -1}, "seed=-1 must be an integer from 0"),
    ({"overrides": {"disp": {"rates": 0.1}}}, "disp.rates is not a known key"),
    ({"overrides": {"collapse": {"rate": 1.5}}}, "collapse.rate=1.5 is refused"),
    ({"profile": "paper"}, "models.mdlm='data/local/llada-v' must be a folder that is there"),
    ({"device": "gpu"}, "device='gpu' is not a device"),
]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
def test_the_notebook_runs_and_leaves_its_files(path, tmp_path):
    out, done = tmp_path / "figures", tmp_path / "done.ipynb"
    parameters = {"profile": "smoke", "seed": 0, "device": "cpu", "out": str(out), "overrides": {}}
    papermill.execute_notebook(str(path), str(done), parameters, cwd=str(ROOT), progress_bar=False)
    cells = code_cells(nbformat.read(done, 4))
    assert all(cell.execution_count for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    folder = out / path.stem
    assert [entry.name for entry in out.iterdir()] == [path.stem]
    figures = {file.stem for file in folder.glob("*.pdf")}
    assert figures >= FIGURES.get(path.stem, set()) and figures
    for name in figures:
        assert (folder / f"{name}.png").stat().st_size > 1000
        assert len(pd.read_csv(folder / f"{name}.csv"))
    shown = [o.data for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    widget = "application/vnd.jupyter.widget-view+json"
    assert len([data for data in shown if widget not in data]) == len(figures)  # each figure once
    assert len([data for data in shown if widget in data]) == WIDGETS.get(path.stem, 0)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notebook"] == path.stem and manifest["profile"] == "smoke"
    assert manifest["parameters"]["seed"] == 0 and manifest["seconds"] > 0 and manifest["code"]
    assert set(manifest["files"]) == {file.name for file in folder.iterdir()} - {"manifest.json"}
    headline = pd.read_csv(folder / "headline.csv")
    assert list(headline) == COLUMNS and set(headline["notebook"]) <= {path.stem}
    known = headline[~headline["interval"].fillna("").isin(("", "none: one seed"))]
    assert (known["low"] <= known["value"]).all() and (known["value"] <= known["high"]).all()
    assert headline.drop(known.index)[["low", "high"]].isna().all(axis=None) and (headline["seeds"] >= 1).all()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_bad_parameter_is_refused_at_the_start_of_the_first_cell(path, change, message):
    """The first two code cells as the kernel would run them, in this process: no kernel to wait for."""
    parameters, first = (cell.source for cell in code_cells(nbformat.read(path, 4))[:2])
    names = {}
    exec(parameters, names)
    names.update(change)
    with pytest.raises(ValueError) as refusal:
        exec(first, names)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert "run" not in names and "torch" not in names  # nothing else has been done


@pytest.mark.parametrize(
    ("path", "refused"), list(zip(NOTEBOOKS, REFUSED, strict=False)), ids=lambda v: getattr(v, "stem", "")
)
def test_papermill_stops_there_with_the_same_message(path, refused, tmp_path):
    change, message = refused
    done = tmp_path / "done.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as stopped:
        papermill.execute_notebook(
            str(path), str(done), change | {"out": str(tmp_path / "out")}, cwd=str(ROOT), progress_bar=False
        )
    assert stopped.value.ename == "ValueError" and message in stopped.value.evalue
    ran = [cell for cell in code_cells(nbformat.read(done, 4)) if cell.execution_count]
    assert "run_parameters" in ran[-1].source and not (tmp_path / "out").exists()
