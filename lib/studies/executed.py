"""An executed notebook as GitHub shows it: outputs without progress bars, times and this machine's traces, under 2 MB.

python -m lib.studies.executed build/laptop/notebooks/01_poisoning.ipynb figures/01_poisoning/01_poisoning.ipynb
"""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from lib.runtime.store import write_atomic

MOST_BYTES = 2_000_000
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def shown(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the outputs that stay where no kernel runs: text, tables and pictures, a widget's among them.

    Bars (widgets without a picture) and what was written to stderr go, as do the metadata of the run.
    """
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _kept(output))]
    return notebook


def _kept(output: NotebookNode) -> NotebookNode | None:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    data = output.get("data", {})
    if data.pop(WIDGET, None) is not None and "image/png" not in data:
        return None
    if "text/plain" in data:
        data["text/plain"] = ADDRESS.sub("", data["text/plain"])
    return output


def _reduced(notebook: NotebookNode) -> NotebookNode:
    """The notebook with pictures of 256 colours."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _fewer_colours(output.data["image/png"])
    return notebook


def _content(notebook: NotebookNode) -> bytes:
    return (nbformat.writes(notebook) + "\n").encode()


def _fewer_colours(png: str) -> str:
    image, made = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(made, "png", optimize=True)
    return base64.b64encode(made.getvalue()).decode()


def main(executed: Path, copy: Path) -> None:
    """Write the copy, `_reduced` where it is too large. Raises ValueError where it would still be larger than
    `MOST_BYTES`."""
    notebook = shown(nbformat.read(executed, 4))
    content = _content(notebook)
    if len(content) > MOST_BYTES:
        content = _content(_reduced(notebook))
    if len(content) > MOST_BYTES:
        raise ValueError(f"{copy} would have {len(content)} bytes: it must have at most {MOST_BYTES}")
    write_atomic(copy, content)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lib.studies.executed EXECUTED COPY")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ValueError, OSError) as refusal:
        sys.exit(f"lib.studies.executed: {refusal}")
