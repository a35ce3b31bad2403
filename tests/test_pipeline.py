"""`make figures` at smoke scale: all notebooks, nothing to do afterwards, and only what a change touches."""

import json
import os
import re
import subprocess

import pandas as pd
import pytest
from headline import SMOKE

from lib.config import ROOT, load_profile
from lib.report import COLUMNS
from lib.studies import attacks, headline_attacks

FULL = {"05_collapse_in_full", "06_disp_in_full"}  # notebooks that FULL=1 adds
FEW = {"few-seed-seed-0-0", "few-rate-0-0", "few-rate-0.1-0", "few-target-insertion-0", "few-target-refusal-0"}
FEW |= {"few-ablation-saliency-random-0"}
EDITORS = {attack.name for attack in headline_attacks(load_profile("smoke"))}


def snakemake(out, *arguments, **settings):
    """The pipeline as the Makefile calls it, figures below `out`; what it prints."""
    command = [".venv/bin/snakemake", "--cores", "2", "--nolock", "--rerun-incomplete", "--quiet", "host", *arguments]
    given = {"PROFILE": "smoke", "SEED": "0", "DEVICE": "cpu", "OVERRIDES": "", "OUT": str(out)}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | given | settings
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    snakemake(out)
    return out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"PROFILE": "paper"}, "models.mdlm='data/local/llada-v' must be a folder that is there"),
        ({"PROFILE": "lptop"}, "'lptop' does not exist: choose one of"),
        ({"OVERRIDES": '{"disp": {"rates": 1}}'}, "disp.rates is not a known key"),
        ({"SEED": "one"}, "SEED='one' must be an integer"),
        ({"STUDY": "colapse"}, "STUDY='colapse' must be one of all, collapse, disp"),
        ({"FULL": "yes"}, "FULL='yes' must be one of 0, 1"),
        ({"EXECUTOR": "slrum"}, "EXECUTOR='slrum' must be one of local, slurm, kubernetes"),
    ],
)
def test_bad_settings_end_in_one_sentence(settings, sentence, tmp_path):
    given = os.environ | {"PROFILE": "smoke", "OUT": str(tmp_path)} | settings
    done = subprocess.run(["make", "-s", "figures"], cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_every_headline_number_is_there(figures):
    table = pd.read_csv(figures / "headline.csv")
    assert table.columns.tolist() == COLUMNS
    assert set(table["name"]) >= SMOKE
    shares = table[~table["name"].str.contains(r"phi_|cti(?:\.|$)")]
    assert shares["value"].between(0, 1).all() and (table["seeds"] >= 1).all()
    known = table[table["low"].notna()]
    assert (known["low"] <= known["value"]).all() and known["interval"].notna().all()
    assert (known["value"] <= known["high"]).all()


def test_every_figure_comes_as_pdf_png_and_csv(figures):
    manifest = json.loads((figures / "MANIFEST.json").read_text())
    assert set(manifest) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - FULL
    for notebook, about in manifest.items():
        files = set(about["files"])
        drawn = {name.removesuffix(".pdf") for name in files if name.endswith(".pdf")}
        assert drawn
        for name in drawn:
            assert {f"{name}.pdf", f"{name}.png", f"{name}.csv"} <= files
        for name in files:
            assert (figures / notebook / name).stat().st_size > 0


def test_a_second_run_finds_nothing_to_do(figures):
    assert "Nothing to be done" in snakemake(figures)
    asked_of_a_cluster = {"jobs": {"run": {"minutes": 1000}, "notebook": {"memory_mb": 9000}}}
    assert "Nothing to be done" in snakemake(figures, OVERRIDES=json.dumps(asked_of_a_cluster))


@pytest.mark.parametrize(
    ("section", "again"),
    [
        ("disp", {"mdlm-poisoned", *FEW, "01_poisoning", "02_training", "04_disp_purification"}),
        ("collapse", {*EDITORS, "01_poisoning", "02_training", "03_collapse_analysis"}),
    ],
)
def test_a_changed_setting_runs_only_what_depends_on_it(figures, section, again):
    plan = snakemake(figures, "--dry-run", OVERRIDES=json.dumps({section: {"rate": 0.2}}))
    jobs = set(re.findall(r"(?:training|notebook) ([\w.-]+) \(", plan))
    assert jobs == again


def planned(out, **settings):
    return set(re.findall(r"(?:training|notebook) ([\w.-]+) \(", snakemake(out, "--dry-run", **settings)))


def test_a_study_runs_alone_and_in_full(tmp_path):
    own = {attack.name for attack in attacks(load_profile("smoke"))} | {"collapse-mdlm-or", "collapse-mdlm-and"}
    assert len(EDITORS) == 6 and len(own) == 13 and own > EDITORS
    assert planned(tmp_path, STUDY="collapse") >= {"03_collapse_analysis"}
    assert planned(tmp_path, STUDY="collapse", FULL="1") >= {"03_collapse_analysis", "05_collapse_in_full"}
    assert {name for name in planned(tmp_path) if name[0] == "0"} == {
        "01_poisoning", "02_training", "03_collapse_analysis", "04_disp_purification"
    }  # fmt: skip
    overrides = json.dumps({"collapse": {"condition_dropout": 0.2}})  # so that none is done already
    assert own <= planned(tmp_path, STUDY="collapse", FULL="1", OVERRIDES=overrides)
    assert own & planned(tmp_path, OVERRIDES=overrides) == EDITORS
    assert not {n for n in planned(tmp_path, STUDY="disp", FULL="1", OVERRIDES=overrides) if "collapse" in n}


def test_the_same_seed_gives_the_same_bytes(figures, tmp_path):
    """Notebooks run again, from the same store, write the same tables."""
    again = tmp_path / "again"
    snakemake(again, "--until", "notebook")
    tables = sorted(path.relative_to(figures) for path in figures.glob("*/*.csv"))
    assert tables
    for table in tables:
        assert (again / table).read_bytes() == (figures / table).read_bytes(), table
