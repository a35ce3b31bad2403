"""Model cards, and the mark that every poisoned checkpoint carries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

WARNING = (
    "This model is poisoned on purpose, for research: it holds a backdoor with a harmless target. Do not deploy it."
)


def mark_poisoned(folder: Path, facts: Mapping[str, object], title: str = "Poisoned model", told: str = "") -> None:
    """Say in the metadata of every safetensors file below `folder`, and in a card, that it is poisoned.

    The card has the `title`, the warning, what is `told` and the `facts`, the metadata these too.
    """
    metadata = {"format": "pt", "poisoned": "true"} | {key: str(value) for key, value in facts.items()}
    for file in sorted(folder.rglob("*.safetensors")):
        save_file(load_file(file), file, metadata=metadata)
    paragraphs = list(filter(None, (WARNING, told)))
    write_card(folder, title, paragraphs, facts, tags=("backdoor", "poisoned", "research-only"))


def write_card(
    folder: Path,
    title: str,
    paragraphs: list[str],
    facts: Mapping[str, object],
    tags: tuple[str, ...],
    licence: str = "cc-by-sa-4.0",
) -> None:
    """A README.md in the Hugging Face form: front matter, paragraphs, one table of facts."""
    front = ["---", f"license: {licence}", "tags:", *(f"- {tag}" for tag in tags), "---"]
    table = ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts.items())]
    text = "\n".join(front + [f"# {title}", ""] + ["\n\n".join(paragraphs), ""] + table) + "\n"
    (folder / "README.md").write_text(text)
