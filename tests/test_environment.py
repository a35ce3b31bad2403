"""The pins, the two ways to install them, and the commands."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
PINS = [Requirement(line) for line in LINES]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def test_each_package_is_pinned_once_to_one_version():
    names = [canonicalize_name(pin.name) for pin in PINS]
    assert len(set(names)) == len(names)
    for pin in PINS:
        (clause,) = pin.specifier
        assert clause.operator == "==" and Version(clause.version).local is None, f"{pin} is no plain pin"
        assert pin.url is None


def test_what_is_installed_is_what_is_pinned():
    asked = [pin for pin in PINS if not pin.marker or pin.marker.evaluate()]
    installed = {str(pin): version(pin.name) for pin in asked}
    wrong = {str(pin): installed[str(pin)] for pin in asked if not pin.specifier.contains(installed[str(pin)])}
    assert asked and not wrong


def test_conda_environment_has_the_same_pins():
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt"]
    conda = [re.split("[=<> ]", entry)[0] for entry in CONDA["dependencies"] if isinstance(entry, str)]
    assert not {canonicalize_name(name) for name in conda} & {canonicalize_name(pin.name) for pin in PINS}
    assert CONDA["channels"] == ["conda-forge"]


def test_conda_python_is_the_oldest_that_is_allowed():
    (python,) = [e for e in CONDA["dependencies"] if isinstance(e, str) and e.startswith("python=")]
    major, minor = python.removeprefix("python=").split(".")
    assert f"sys.version_info < ({major}, {minor})" in (ROOT / "Makefile").read_text()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["ruff"]["target-version"] == f"py{major}{minor}"


def test_make_alone_lists_every_target_on_a_line():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [line.split()[1] for line in shown if line.startswith("make ")] == phony.split()[1:]


@pytest.mark.parametrize(
    ("folder", "named"),
    [("docs", {"mkdocs-material", "mkdocstrings-python"}), ("tests/browser", {"selenium"})],
)
def test_what_builds_the_site_and_drives_the_browser_is_pinned(folder, named):
    lines = (ROOT / folder / "requirements.txt").read_text().splitlines()[1:]
    pins = [Requirement(line) for line in lines]
    assert named <= {canonicalize_name(pin.name) for pin in pins}
    assert all(clause.operator == "==" for pin in pins for clause in pin.specifier) and all(p.specifier for p in pins)


def test_windows_is_refused_in_one_sentence():
    make = subprocess.run(["make", "OS=Windows_NT"], cwd=ROOT, capture_output=True, text=True)
    code = "import sys; sys.platform = 'win32'; import lib.metrics"
    python = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    for done in (make, python):
        said = done.stderr.splitlines()[-1]
        assert done.returncode and "must run on Linux or macOS, and on Windows inside WSL" in said
