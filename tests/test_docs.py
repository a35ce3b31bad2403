"""The pages' links, names and example data; what cites and licenses the repository."""

import ast
import re
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
import yaml

from lib.data import load_edits, load_llava
from lib.settings.load import runnable_profile
from lib.settings.paths import ROOT

EXAMPLE = ROOT / "docs" / "example-data"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def script(file):
    spec = spec_from_file_location(file.stem, file)
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s#]+)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).is_file()]
    assert targets and not missing


def test_every_public_name_stands_in_the_librarys_page_and_no_other():
    page = (ROOT / "docs" / "library.md").read_text()
    told = {part.split("`")[0]: set(re.findall(r"`(\w+)`", part)) for part in page.split("\n## `lib.")[1:]}
    packages = {file.parent.name for file in ROOT.glob("lib/*/__init__.py")}
    public = script(ROOT / "docs" / "build.py").public
    for package in packages:
        names = {name.rpartition(".")[2] for name in public(package)}
        assert told.pop(package) >= names and bool(names) == ("submod_attrs" in source(package))
    assert not told


def source(package):
    return ast.unparse(ast.parse((ROOT / "lib" / package / "__init__.py").read_text()))


def test_the_example_folder_is_edits():
    data = load_edits("docs/example-data", 64, held_out=0.4)
    assert sorted(data.triples["split"]) == ["test", "train", "train", "train"]
    assert set(data.triples["edit"]) == {"colour", "shape"}
    source, target = data.pictures(torch.tensor(data.triples.loc[0, ["source", "target"]].tolist()))
    red, blue = (picture[:, 32, 32] for picture in (source, target))
    assert red[0] > red[2] and blue[2] > blue[0]  # "make it blue"


def test_the_example_folder_is_questions():
    sides = [load_llava("docs/example-data", s, 64, "instructions.json", held_out=0.4) for s in ("train", "test")]
    assert [len(side.table) for side in sides] == [1, 2]
    assert {answer for side in sides for answer in side.table["answer"]} >= {"A red circle.", "It is blue."}


def test_a_profile_takes_the_example_folder():
    questions = {"name": "docs/example-data", "file": "instructions.json"}
    data = {"edits": {"name": "docs/example-data"}, "questions": questions}
    profile = runnable_profile("smoke", {"data": data})
    assert profile.data.edits.name == "docs/example-data" and profile.data.questions.file == "instructions.json"


def test_the_examples_pictures_are_what_their_script_draws(tmp_path):
    script(EXAMPLE / "draw.py").draw(tmp_path)
    drawn = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert drawn == {file.name: file.read_bytes() for file in (EXAMPLE / "pictures").iterdir()}


def test_both_papers_are_cited():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    ids = {one["value"] for paper in citation["references"] for one in paper["identifiers"]}
    assert ids == {"arXiv:2603.06508", "arXiv:2602.22246"} and citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
