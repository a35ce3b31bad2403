"""`make figures` at smoke scale: all notebooks, nothing to do afterwards, and only what a change touches.

What follows from the settings alone is tested in tests/studies/test_pipeline.py, without Snakemake.
"""

import json
import os
import subprocess

import pandas as pd
from headline import SMOKE
from other_process import python
from pipeline import IN_FULL, jobs, snakemake, to_do

from lib.settings.paths import ROOT
from lib.studies.pipeline import READS, planned
from lib.studies.report import COLUMNS
from notebooks import NOTEBOOKS

JOBS = {"run": {"minutes": 1000}, "notebook": {"memory_mb": 9000}}


def test_bad_settings_end_in_one_sentence(tmp_path):
    given = os.environ | {"PROFILE": "smoke", "OUT": str(tmp_path), "FULL": "yes"}
    done = subprocess.run(["make", "-s", "figures"], cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode != 0 and not list(tmp_path.iterdir())
    assert "make figures: FULL='yes' must be one of 0, 1" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_every_headline_number_is_there(smoke):
    table = pd.read_csv(smoke.out / "headline.csv")
    assert table.columns.tolist() == COLUMNS
    assert set(table["name"]) >= SMOKE
    shares = table[~table["name"].str.contains(r"phi_|cti(?:\.|$)")]
    assert shares["value"].between(0, 1).all() and (table["seeds"] >= 1).all()
    known = table[table["low"].notna()]
    assert (known["low"] <= known["value"]).all() and known["interval"].notna().all()
    assert (known["value"] <= known["high"]).all()


def test_every_figure_comes_as_pdf_png_and_csv(smoke):
    manifest = json.loads((smoke.out / "MANIFEST.json").read_text())
    names = {path.stem for path in NOTEBOOKS}
    assert set(manifest) == names - set(IN_FULL)
    assert {entry.name for entry in smoke.out.iterdir()} == names | {"headline.csv", "MANIFEST.json"}
    for notebook in names:
        files = set(json.loads((smoke.out / notebook / "manifest.json").read_text())["files"])
        drawn = {name.removesuffix(".pdf") for name in files if name.endswith(".pdf")}
        assert drawn
        for name in drawn:
            assert {f"{name}.pdf", f"{name}.png", f"{name}.csv"} <= files
        for name in files:
            assert (smoke.out / notebook / name).stat().st_size > 0


def test_a_second_run_finds_nothing_to_do_also_where_a_cluster_is_asked_for_more(smoke):
    assert "Nothing to be done" in snakemake(smoke.out, OVERRIDES=json.dumps({"jobs": JOBS}))


def dry(out, **settings):
    """The jobs that Snakemake would run, and the plan that it has."""
    return to_do(out, **settings), planned({"PROFILE": "smoke"} | settings)


def test_a_changed_setting_runs_only_what_depends_on_it(smoke):
    """As tests/studies/test_pipeline.py says of both studies."""
    again, plan = dry(smoke.out, OVERRIDES=json.dumps({"disp": {"rate": 0.2}}))
    before = planned({"PROFILE": "smoke"})
    assert again == {job for job in jobs(plan) if plan.depends(job) != before.depends(job)} and again < jobs(plan)


def test_in_full_it_runs_every_job_of_the_plan(tmp_path):
    changed = {"disp": {"rate": 0.2}, "collapse": {"condition_dropout": 0.2}}  # so that none is done already
    found, plan = dry(tmp_path, FULL="1", OVERRIDES=json.dumps(changed))
    assert found == jobs(plan) == {*READS, *plan.known}


def test_the_same_seed_gives_the_same_bytes(smoke, tmp_path):
    """Notebooks run again, in another kind of process and from the same store, write the same tables."""
    again = {name: given | {"out": str(tmp_path)} for name, given in smoke.parameters.items()}
    done = python("tests/cells.py", json.dumps(again))
    assert done.returncode == 0, done.stderr + "".join(file.read_text() for file in tmp_path.glob("*.error"))
    tables = sorted(path.relative_to(smoke.out) for path in smoke.out.glob("*/*.csv"))
    assert tables == sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*/*.csv"))
    assert {table.parts[0] for table in tables} == {path.stem for path in NOTEBOOKS}
    for table in tables:
        assert (tmp_path / table).read_bytes() == (smoke.out / table).read_bytes(), table
