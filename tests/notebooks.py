"""The notebooks, and the figures that each of them must make."""

from lib.settings.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {
    "00_quickstart": {"answers", "outputs", "masked", "own"},
    "01_poisoning": {"triggers", "poisoned_edits", "poisoned"},
    "02_training": {"edits", "training"},
    "03_collapse_analysis": {"coalitions", "attribution"}
    | {f"samples_{part}_white-box_{protocol}" for part in ("pair", "control") for protocol in ("or", "and")},
    "04_disp_purification": {"overview", "saliency", "ratios", "purification", "targets", "rates", "ablation"},
    "05_collapse_in_full": {"grid", "readability", "dynamics", "mdlm", "remedies", "samplers", "detection"},
    "06_disp_in_full": {"defences", "rates", "targets", "ablation", "attacks_defended", "words", "editor", "gains"}
    | {"saliency_easy-VQA", "defences_elsewhere", "targets_elsewhere"}
    | {"targets_triggers", "targets_attackers", "measures"},
}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
