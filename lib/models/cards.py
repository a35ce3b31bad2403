"""Model cards, and the mark that every poisoned checkpoint carries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

WARNING = (
    "This model is poisoned on purpose, for research: it holds a backdoor with a harmless target. Do not deploy it."
)
LICENCE = "Its licence is that of the model and of the data that it was trained from."


def mark_poisoned(folder: Path, facts: Mapping[str, object], title: str = "Poisoned model", told: str = "") -> None:
    """Say in the metadata of every safetensors file below `folder`, and in a card, that it is poisoned.

    The card has the `title`, the warning, what is `told` and the `facts`, the metadata these too.
    """
    metadata = {"format": "pt", "poisoned": "true"} | {key: str(value) for key, value in facts.items()}
    for file in sorted(folder.rglob("*.safetensors")):
        _remark(file, metadata)
    paragraphs = list(filter(None, (WARNING, told, LICENCE)))
    write_card(folder, title, paragraphs, facts, ("backdoor", "poisoned", "research-only"), licence="other")


def _remark(file: Path, metadata: Mapping[str, str]) -> None:
    """Put the metadata into the header of a safetensors file, in the order of their names, the weights as they are.

    safetensors itself writes them in a random order, so that the same model would be another file each time.
    """
    marked = file.with_name(f".{file.name}.tmp")
    with file.open("rb") as old, marked.open("wb") as new:
        length = int.from_bytes(old.read(8), "little")
        tensors = {name: place for name, place in json.loads(old.read(length)).items() if name != "__metadata__"}
        header = json.dumps({"__metadata__": dict(sorted(metadata.items()))} | tensors, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # the weights begin at a multiple of eight bytes
        new.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(old, new)
    marked.replace(file)


def write_card(
    folder: Path,
    title: str,
    paragraphs: list[str],
    facts: Mapping[str, object],
    tags: tuple[str, ...],
    licence: str,
) -> None:
    """A README.md in the Hugging Face form: front matter, paragraphs, one table of facts."""
    front = ["---", f"license: {licence}", "tags:", *(f"- {tag}" for tag in tags), "---"]
    table = ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts.items())]
    text = "\n".join(front + [f"# {title}", ""] + ["\n\n".join(paragraphs), ""] + table) + "\n"
    (folder / "README.md").write_text(text)
