"""Build the site: python docs/build.py (or `make docs`), into build/site.

The pages, README.md among them, are laid out in build/docs as they lie in the repository, with every file that they
link to, so that a link is right on the site where it is right in the repository, and MkDocs tells where one is not.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGE, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
LINK = re.compile(r"""\]\(([^)\s#]+)[^)]*\)|(?:src|href)="([^"#]+)""")
REMOTE = re.compile(r"(?:https?:)?//")


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md, docs/ and the pages that these link to, by paths below the repository."""
    found, waiting = [], [Path("README.md"), Path("CONTRIBUTING.md"), *sorted((ROOT / "docs").glob("*.md"))]
    while waiting:
        page = waiting.pop(0)
        page = page.relative_to(ROOT) if page.is_absolute() else page
        if page not in found:
            found.append(page)
            waiting += [file for file in linked(page) if file.suffix == ".md"]
    return found


def linked(page: Path) -> list[Path]:
    """The files below the repository that a page links to, those that are there."""
    targets = [a or b for a, b in LINK.findall((ROOT / page).read_text())]
    files = [((ROOT / page).parent / target).resolve() for target in targets if not REMOTE.match(target)]
    return [file.relative_to(ROOT) for file in files if file.is_file() and file.is_relative_to(ROOT)]


def public(package: str) -> list[str]:
    """The full names of what `lib.<package>` names as meant to be called."""
    tree = ast.parse((ROOT / "lib" / package / "__init__.py").read_text())
    given = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "submod_attrs"]
    modules = ast.literal_eval(given[0]) if given else {}
    return [f"lib.{package}.{module}.{name}" for module, names in modules.items() for name in names]


def stage() -> None:
    """Fill STAGE; below each package's heading of docs/library.md stand the signatures of its public names."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for file in {file for page in pages() for file in [page, *linked(page)]}:
        (STAGE / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, STAGE / file)
    page = STAGE / "docs" / "library.md"
    parts = re.split(r"^(## `lib\.(\w+)`\n)", page.read_text(), flags=re.MULTILINE)
    for at in range(2, len(parts), 3):
        parts[at + 1] += "".join(f"\n::: {name}\n" for name in public(parts[at]))
        parts[at] = ""
    page.write_text("".join(parts))


class Fetched(HTMLParser):
    """What a page makes a browser fetch from elsewhere."""

    def __init__(self, page: Path):
        super().__init__()
        self.remote: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        wanted = given.get("src") or (given.get("href") if tag == "link" and given.get("rel") != "canonical" else None)
        if wanted and REMOTE.match(wanted):
            self.remote.append(wanted)


def main() -> None:
    stage()
    # --quiet would hide warnings from --strict, too
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    command += ["--config-file", "docs/mkdocs.yml", "--site-dir", str(SITE)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # Material's advertisement of its successor
    subprocess.run(command, cwd=ROOT, env=quiet, check=True)
    remote = {url for page in SITE.rglob("*.html") for url in Fetched(page).remote}
    if remote:
        sys.exit(f"the site must fetch nothing from elsewhere, but does: {', '.join(sorted(remote))}")
    print(f"{SITE.relative_to(ROOT)}/index.html: {len(list(SITE.rglob('*.html')))} pages, no warning")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
