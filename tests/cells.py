"""The code cells of notebooks one after another in this process, without a kernel.

    PYTHONPATH=. python tests/cells.py PARAMETERS      # in JSON, by notebook

is for their tables: files of figures stay empty, as drawing them takes longer than all else.
"""

import json
import sys
import traceback
from pathlib import Path
from unittest.mock import patch


def run(notebook: str, parameters: dict) -> None:
    """All its code cells, the parameters in place of its own as papermill puts them."""
    import nbformat
    from IPython.display import display

    from lib.settings.paths import ROOT

    names = {"__name__": "__main__", "display": display}
    for number, cell in enumerate(nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells):
        if cell.cell_type != "code":
            continue
        exec(compile(cell.source, f"{notebook}[{number}]", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters


def run_all(parameters: dict[str, dict]) -> None:
    """The notebooks in turn. What one of them raises is written to its `out`/<notebook>.error, and the next goes on."""
    failed = []
    for notebook, given in parameters.items():
        try:
            run(notebook, given)
        except Exception:
            failed.append(notebook)
            Path(given["out"], f"{notebook}.error").write_text(traceback.format_exc())
    sys.exit(f"failed: {failed}" if failed else 0)


if __name__ == "__main__":
    with patch("lib.figures.style.render", lambda figure, kind: b""):
        run_all(json.loads(sys.argv[1]))
