import hashlib
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import IPython
import IPython.display
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from lib.studies import report as module
from lib.studies.report import COLUMNS, Report, code_version, merge
from lib.studies.run import Run

ROOT = Path(__file__).parents[2]


class Sections:
    """As much of a profile as a report asks of one."""

    def model_dump(self, mode):
        return {"name": "smoke", "threads": 1, "disp": {"rate": 0.1, "ratios": [0.0, 0.5]}}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Reports below tmp_path/figures, outside any checkout and without a profile file."""
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def make(notebook="03_collapse_analysis", seed=7):
        return Report(Run(Sections(), seed, torch.device("cpu"), tmp_path / "figures", None, notebook))

    return make


@pytest.fixture(autouse=True)
def loosely_typed():
    """A Run holds a stand-in for a profile here."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def figure():
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([0, 1], [1, 0], label="a")
    return drawn


TABLE = pd.DataFrame({"name": ["a", "b"], "value": [1 / 3, np.nan], "count": [123456789, 2]})


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# What is left behind


def test_a_figure_leaves_its_pdf_its_png_and_its_numbers(start):
    report = start()
    assert report.figure("curve", figure(), TABLE) is None
    files = contents(report.folder)
    assert sorted(files) == ["curve.csv", "curve.pdf", "curve.png"]
    assert files["curve.pdf"].startswith(b"%PDF") and files["curve.png"].startswith(b"\x89PNG")
    assert files["curve.csv"].decode() == "name,value,count\na,0.333333,123456789\nb,,2\n"
    back = pd.read_csv(report.folder / "curve.csv")
    pd.testing.assert_frame_equal(back, TABLE, rtol=1e-5, check_dtype=False)


def test_a_table_leaves_its_csv(start):
    report = start()
    report.table("plan", TABLE)
    report.table("filtered", TABLE[TABLE["name"] == "b"])
    assert sorted(contents(report.folder)) == ["filtered.csv", "plan.csv"]
    assert (report.folder / "filtered.csv").read_text() == "name,value,count\nb,,2\n"


def test_the_same_report_is_the_same_files_but_for_the_manifest(start):
    left = []
    for _ in range(2):
        report = start()
        report.figure("curve", figure(), TABLE)
        report.number("a.rate", 0.5, 0.4, 0.6, n=10, interval="Wilson")
        report.close()
        left.append(contents(report.folder))
        left[-1].pop("manifest.json")
    assert left[0] == left[1] and len(left[0]) == 4


def test_headline_numbers_keep_their_order_interval_and_counts(start):
    report = start()
    report.number("collapse.or.asr_both", 1, low=0.98, high=1.0, n=200, seeds=3, interval="t over seeds")
    limits = torch.tensor(-0.5), torch.tensor(0.0)
    report.number("collapse.or.cti", torch.tensor(-1 / 3), *limits, torch.tensor(200), interval="t over clusters")
    report.number("collapse.and.cti", 0.5, float("nan"), np.float64("nan"), 96, interval="none: one seed")
    report.number("clip.recall", np.float32(0.25))
    report.close()
    assert (report.folder / "headline.csv").read_text().splitlines() == [
        "name,value,low,high,n,seeds,interval,notebook",
        "collapse.or.asr_both,1,0.98,1,200,3,t over seeds,03_collapse_analysis",
        "collapse.or.cti,-0.333333,-0.5,0,200,1,t over clusters,03_collapse_analysis",
        "collapse.and.cti,0.5,,,96,1,none: one seed,03_collapse_analysis",
        "clip.recall,0.25,,,,1,,03_collapse_analysis",
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_numbers_are_taken_from_a_table_by_name_where_it_has_them(start, seeds):
    report = start()
    number = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "interval": "Wilson"}
    table = pd.DataFrame([{"name": name} | number for name in ("a", "b", "c")])
    report.numbers("model", table if seeds == 1 else table.assign(seeds=seeds), "c", "a", "d")
    report.close()
    headline = pd.read_csv(report.folder / "headline.csv")
    assert headline["name"].tolist() == ["model.a", "model.c"] and headline["seeds"].tolist() == [seeds] * 2
    assert headline[list(number)].to_numpy().tolist() == [list(number.values())] * 2


def test_a_report_without_numbers_has_an_empty_headline(start):
    report = start()
    report.close()
    assert (report.folder / "headline.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_the_manifest_says_what_made_which_files(start):
    report = start(seed=3)
    report.figure("curve", figure(), TABLE)
    report.close()
    manifest = json.loads((report.folder / "manifest.json").read_text())
    assert manifest["notebook"] == "03_collapse_analysis" and manifest["profile"] == "smoke"
    disp = {"rate": 0.1, "ratios": [0.0, 0.5]}
    assert manifest["parameters"] == {"seed": 3, "device": "cpu", "threads": 1, "disp": disp}
    assert torch.__version__.startswith(manifest["versions"]["torch"])
    assert set(manifest["versions"]) == {
        "python",
        "torch",
        "transformers",
        "diffusers",
        "numpy",
        "matplotlib",
    }
    assert manifest["code"].startswith("lib sha256 ")
    files = contents(report.folder)
    del files["manifest.json"]
    assert manifest["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert 0 <= manifest["seconds"] < 600
    assert datetime.fromisoformat(manifest["finished"]).utcoffset().total_seconds() == 0


def test_a_real_profile_fits_into_the_manifest(start):
    from lib.settings.load import load_profile
    from lib.settings.paths import PROFILES

    profile = load_profile("smoke")
    report = start()
    object.__setattr__(report.run, "profile", profile)
    report.close()
    manifest = json.loads((report.folder / "manifest.json").read_text())
    assert manifest["profile"] == "smoke"
    given = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
    assert manifest["parameters"]["disp"]["rate"] == given["disp"]["rate"]


def test_a_notebook_shows_a_figure_once_as_it_was_saved(start, monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    report = start()
    report.figure("unseen", figure(), TABLE)
    assert not shown
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    report.figure("seen", figure(), TABLE)
    (picture,) = shown
    assert picture.data == (report.folder / "seen.png").read_bytes() and picture.width == 220


# The code's version


def test_the_version_is_the_commit_and_whether_files_differ(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    answers = {"describe": "v1-3-gabc\n", "status": ""}

    def run(command, **options):
        assert "--no-optional-locks" in command and options["check"]
        (asked,) = answers.keys() & set(command)
        return subprocess.CompletedProcess(command, 0, answers[asked], "")

    monkeypatch.setattr(module.subprocess, "run", run)
    assert code_version(tmp_path) == "v1-3-gabc"
    answers["status"] = " M lib/studies/report.py\n"
    assert code_version(tmp_path) == "v1-3-gabc-dirty"


@pytest.mark.parametrize("failure", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")])
def test_without_git_it_is_the_digest_of_the_sources(tmp_path, monkeypatch, failure):
    assert len(code_version(tmp_path).removeprefix("lib sha256 ")) == 64
    monkeypatch.setattr(module, "library_digest", lambda: "of lib")
    assert code_version(tmp_path) == "lib sha256 of lib"
    (tmp_path / ".git").mkdir()

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(module.subprocess, "run", fail)
    assert code_version(tmp_path) == "lib sha256 of lib"


# Refusals


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (("a", float("nan")), "value of a is nan"),
        (("a", 0.5, float("nan"), 0.6), "both or neither"),
        (("a", 0.5, 0.4, float("inf"), 9, 1, "t"), "high of a is inf"),
        (("a", 0.5, 0.6, 0.7, 9, 1, "t"), "lie between"),
        (("a", 0.5, 0.3, 0.4, 9, 1, "t"), "lie between"),
        (("a", 0.5, 0.4, 0.6, 9), "interval must say of what kind"),
        (("a", 0.5, 0.4), "both or neither"),
        (("a", 0.5, None, None, 0), "n of a is 0"),
        (("a", 0.5, None, None, 1.5), "n of a is 1.5"),
        (("a", 0.5, None, None, 9, 0), "seeds of a is 0"),
        (("", 0.5), "name is ''"),
        (("a..b", 0.5), "name is 'a..b'"),
        (("a,b", 0.5), "name is 'a,b'"),
        (("taken", 0.5), "already has"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(start, number, message):
    report = start()
    report.number("taken", 1.0)
    with pytest.raises(ValueError, match=message):
        report.number(*number)
    report.close()
    assert len(pd.read_csv(report.folder / "headline.csv")) == 1


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.b", "headline", "taken"])
def test_a_name_that_is_none_or_taken_is_refused(start, name):
    report = start()
    report.table("taken", TABLE)
    before = contents(report.folder)
    with pytest.raises(ValueError, match="name is"):
        report.table(name, TABLE.iloc[:1])
    with pytest.raises(ValueError, match="name is"):
        report.figure(name, figure(), TABLE.iloc[:1])
    assert contents(report.folder) == before


def test_a_table_whose_index_would_be_lost_is_refused(start):
    report = start()
    with pytest.raises(ValueError, match="reset_index"):
        report.figure("curve", figure(), TABLE.set_index("name"))
    assert not report.folder.exists()


@pytest.mark.parametrize("notebook", ["", "../x", "a b"])
def test_a_notebook_without_a_name_is_refused(start, notebook):
    with pytest.raises(ValueError, match="notebook is"):
        start(notebook)


# All notebooks together


def closed(start, notebook, **numbers):
    report = start(notebook)
    for name, value in numbers.items():
        report.number(name, value)
    report.close()
    return report.folder.parent


def test_merging_sorts_by_notebook_and_name_and_keeps_the_digits(start):
    closed(start, "04_b", z=0.123456789, a=1)
    closed(start, "01_none")
    out = closed(start, "03_a", m=-1e-9)
    merge(out)
    assert (out / "headline.csv").read_text().splitlines() == [
        ",".join(COLUMNS),
        "m,-1e-09,,,,1,,03_a",
        "a,1,,,,1,,04_b",
        "z,0.123457,,,,1,,04_b",
    ]
    manifests = json.loads((out / "MANIFEST.json").read_text())
    assert list(manifests) == ["01_none", "03_a", "04_b"]
    assert manifests["03_a"] == json.loads((out / "03_a" / "manifest.json").read_text())
    before = contents_of_files(out)
    merge(out)
    assert contents_of_files(out) == before


def contents_of_files(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_merging_refuses_one_name_from_two_notebooks(start):
    closed(start, "03_a", same=1)
    out = closed(start, "04_b", same=2)
    with pytest.raises(ValueError, match="'same' is in 03_a and 04_b"):
        merge(out)
    assert not (out / "headline.csv").exists() and not (out / "MANIFEST.json").exists()


def test_merging_refuses_reports_that_are_not_closed(start, tmp_path):
    with pytest.raises(ValueError, match="run the notebooks"):
        merge(tmp_path)
    out = closed(start, "03_a", a=1)
    (out / "03_a" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="run its notebook again"):
        merge(out)


def test_merging_refuses_other_columns(start):
    out = closed(start, "03_a", a=1)
    (out / "03_a" / "headline.csv").write_text("name,value\na,1\n")
    with pytest.raises(ValueError, match="they must be"):
        merge(out)


def test_merging_refuses_several_seeds_and_tells_several_versions_of_the_code(start):
    closed(start, "03_a", a=1)
    other = start("04_b", seed=8)
    other.close()
    with pytest.raises(ValueError, match="must have the same seed, not 7 in 03_a, 8 in 04_b"):
        merge(other.folder.parent)
    out = closed(start, "04_b", b=2)
    for field, value in (("profile", "laptop"), ("code", "another")):
        file = out / "04_b" / "manifest.json"
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before) | {field: value}))
        if field == "code":
            with pytest.warns(UserWarning, match="several versions of the code: .* in 03_a, another in 04_b"):
                merge(out)
        else:
            with pytest.raises(ValueError, match="must have the same profile, not smoke in 03_a, laptop in 04_b"):
                merge(out)
        file.write_text(before)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("name,value\na,2\n")])
def test_merging_refuses_what_its_manifest_does_not_say(start, damage):
    report = start("03_a")
    report.table("rows", TABLE)
    report.close()
    damage(report.folder / "rows.csv")
    with pytest.raises(ValueError, match="rows.csv is not what its manifest.json says: run its notebook again"):
        merge(report.folder.parent)


def test_the_command_merges_or_says_why_not(start, tmp_path):
    out = closed(start, "03_a", a=1)
    command = [sys.executable, "-m", "lib.studies.report"]
    done = subprocess.run([*command, str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and (out / "MANIFEST.json").exists()
    done = subprocess.run([*command, str(out / "03_a")], cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 1 and "run the notebooks first" in done.stderr and "Traceback" not in done.stderr
    )
