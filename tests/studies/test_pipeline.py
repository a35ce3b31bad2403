"""What `make figures` runs, by its settings alone."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from pipeline import jobs

from lib.settings.load import load_profile
from lib.settings.paths import CHECKPOINTS, ROOT
from lib.studies.cases import attacks, headline_attacks
from lib.studies.pipeline import READS, planned

FEW = {"few-seed-seed-0-0", "few-rate-0-0", "few-rate-0.1-0", "few-target-insertion-0", "few-target-refusal-0"}
FEW |= {"few-ablation-saliency-random-0"}
EDITORS = {attack.name for attack in headline_attacks(load_profile("smoke"))}
NOTEBOOKS = ("00_quickstart", "01_poisoning", "02_training", "03_collapse_analysis", "04_disp_purification")


NO_MAPPING = ("{disp: {rate: 0.1}", "disp:\t{rate: 1}", "? [a]\n: 1", "[" * 9999)


def plan_of(**settings):
    return planned({"PROFILE": "smoke"} | settings)


@pytest.mark.usefixtures("untyped")
def test_bad_settings_are_refused_in_one_sentence():
    refused = [
        ({"PROFILE": "paper"}, "models.mdlm='data/local/llada-v' must be a folder that is there"),
        ({"PROFILE": "lptop"}, "'lptop' does not exist: choose one of disp-authors, laptop, paper, smoke"),
        ({"OVERRIDES": '{"disp": {"rates": 1}}'}, "disp.rates is not a known key"),
        ({"OVERRIDES": '{"disp": {"rate": 1.5}}'}, "disp.rate=1.5 is refused"),
        ({"OVERRIDES": '{"disp": '}, "OVERRIDES='{\"disp\": '"),
        *(({"OVERRIDES": text}, "OVERRIDES=") for text in NO_MAPPING),
        ({"OVERRIDES": "{disp: {rate: 2024-01-01}}"}, "overrides.disp.rate=datetime.date(2024, 1, 1) must be a text"),
        ({"OVERRIDES": "{disp: {rate: 2024-13-01}}"}, "OVERRIDES='{disp: {rate: 2024-13-01}}' must be a mapping"),
        ({"OVERRIDES": "{disp: {2024-01-01: 1}}"}, "overrides.disp has the key datetime.date(2024, 1, 1)"),
        ({"OVERRIDES": "{1: 2}"}, "overrides has the key 1: it must be a text"),
        ({"OVERRIDES": "{name: laptop}"}, "name='laptop' must stay 'smoke'"),
        ({"OVERRIDES": "{name: ../../elsewhere}"}, "name='../../elsewhere' must stay 'smoke'"),
        ({"OVERRIDES": "{data: {image_size: 128}}"}, "data.image_size=128 must be 64, which"),
        ({"SEED": "one"}, "SEED='one' must be an integer from 0"),
        ({"SEED": "2147483648"}, "SEED='2147483648' must be an integer from 0 to 2**31 - 1"),
        ({"SEED": "٣"}, "SEED='٣' must be an integer from 0"),
        ({"DEVICE": "foo"}, "DEVICE='foo' must be one of auto, cpu, cuda, cuda:<n>, mps"),
        ({"OUT": "{notebook}"}, "OUT='{notebook}' must be the name of a folder without braces"),
        ({"OUT": "README.md"}, "OUT='README.md' must be a folder that can be written to"),
        ({"OUT": "README.md/figures"}, "OUT='README.md/figures' must be a folder that can be written to"),
        ({"SEED": "-1"}, "SEED='-1' must be an integer from 0"),
        ({"STUDY": "colapse"}, "STUDY='colapse' must be one of all, collapse, disp"),
        ({"FULL": "yes"}, "FULL='yes' must be one of 0, 1"),
        ({"EXECUTOR": "slrum"}, "EXECUTOR='slrum' must be one of local, slurm, kubernetes"),
    ]
    for settings, sentence in refused:
        with pytest.raises(ValueError) as refusal:
            plan_of(**settings)
        assert sentence in str(refusal.value) and "\n" not in str(refusal.value), settings


def test_a_build_folder_that_is_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("build").write_text("a file")
    with pytest.raises(ValueError, match="^build='build' must be a folder that can be written to, which"):
        plan_of(OUT=str(tmp_path / "out"))
    Path("build").unlink()
    assert plan_of(OUT=str(tmp_path / "out")).out == str(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="OUT=.* must be a folder that can be written to"):
        plan_of(OUT=str(tmp_path / "out"))


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "", "1.5"])
def test_make_refuses_no_jobs(jobs, tmp_path):
    """Before anything else: with no core snakemake would wait for ever."""
    command = ["make", "-o", ".venv/requirements.txt", "figures", f"JOBS={jobs}", f"OUT={tmp_path}", "PROFILE=smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode and f"JOBS='{jobs}' must be an integer from 1" in done.stderr


def test_what_is_not_set_is_the_laptop_profile_on_the_cpu():
    plan = planned({"PROFILE": "", "SEED": "", "OUT": "", "FULL": ""})
    assert (plan.profile, plan.seed, plan.device, plan.out) == (load_profile("laptop"), 0, "cpu", "figures")
    assert plan.build == "build/laptop" and plan.notebooks == NOTEBOOKS
    assert plan_of().out == "build/smoke/figures"


def test_jobs_get_settings_as_they_were_given():
    """Quotes and spaces pass through, and 1e-05 stays a number where YAML reads it."""
    quoted = {"label": 'two "short" rounds', "settings": {"rounds": 2}}
    overrides = {"collapse": {"condition_dropout": 1e-05}, "disp_grid": {"ablations": [quoted]}}
    plan = plan_of(SEED="3", OUT="a folder", OVERRIDES=json.dumps(overrides), DEVICE="cuda")
    given = plan.environment()
    parameters = yaml.safe_load(given["PARAMETERS"])
    chosen = {"profile": "smoke", "seed": 3, "device": "cuda", "out": "a folder", "overrides": overrides}
    assert parameters == chosen and json.loads(given["OVERRIDES"]) == overrides
    assert [given[n] for n in ("PROFILE", "SEED", "DEVICE", "OUT")] == ["smoke", "3", "cuda", "a folder"]
    assert planned({**given}) == plan and plan_of(OVERRIDES="{collapse: {rate: 0.5}}").profile.collapse.rate == 0.5


def test_a_study_runs_alone_and_in_full():
    own = {attack.name for attack in attacks(load_profile("smoke"))} | {"collapse-mdlm-or", "collapse-mdlm-and"}
    assert len(EDITORS) == 6 and len(own) == 15 and own > EDITORS
    assert jobs(plan_of()) == {*NOTEBOOKS, *EDITORS, *FEW, "mdlm-poisoned"}
    assert jobs(plan_of(STUDY="collapse")) == {"03_collapse_analysis", *EDITORS}
    assert jobs(plan_of(STUDY="collapse", FULL="1")) == {"03_collapse_analysis", "05_collapse_in_full", *own}
    disp = jobs(plan_of(STUDY="disp", FULL="1"))
    assert disp >= {"04_disp_purification", "06_disp_in_full", *FEW, "mdlm-poisoned", "disp-editor"}
    assert not {name for name in disp if "collapse" in name or name.startswith("editor-")}
    full = plan_of(FULL="1")
    assert set(full.notebooks) == set(READS) and jobs(full) == {*READS, *full.known}


def test_a_notebook_waits_for_what_it_reads_alone():
    """Of all pairs and seeds notebook 02 shows the first, on the editor and on the control."""
    plan = planned({})
    first = {f"editor-{part}-white-box-{protocol}-0" for part in ("pair", "control") for protocol in ("or", "and")}
    assert set(plan.runs("02_training")) == first | {"mdlm-poisoned"}
    assert set(plan.runs("03_collapse_analysis")) > first and not plan.runs("01_poisoning")


def test_further_seeds_are_read_in_full_alone():
    plain, full = (planned({"FULL": full}) for full in ("0", "1"))
    further = {run for run in full.known if run.startswith("further-")}
    assert further and set(full.runs("03_collapse_analysis")) == {*plain.runs("03_collapse_analysis"), *further}
    assert not further & jobs(plain) and further <= jobs(full)


@pytest.mark.parametrize(
    ("section", "again"),
    [
        ("disp", {"mdlm-poisoned", *FEW, "01_poisoning", "02_training", "04_disp_purification"}),
        ("collapse", {*EDITORS, "01_poisoning", "02_training", "03_collapse_analysis"}),
    ],
)
def test_a_changed_setting_changes_only_what_depends_on_it(section, again):
    before, after = (plan_of(OVERRIDES=text) for text in ("", json.dumps({section: {"rate": 0.2}})))
    assert jobs(before) == jobs(after)
    assert {job for job in jobs(after) if before.depends(job) != after.depends(job)} == again


def test_seed_and_device_change_all_and_what_a_cluster_is_asked_for_nothing():
    plan = plan_of()
    for changed in ({"SEED": "1"}, {"DEVICE": "cuda"}):
        assert all(plan.depends(job) != plan_of(**changed).depends(job) for job in jobs(plan))
    asked = {"run": {"minutes": 1000}, "notebook": {"memory_mb": 9000}}
    other = plan_of(OVERRIDES=json.dumps({"jobs": asked}), OUT="elsewhere", EXECUTOR="slurm")
    assert other.profile != plan.profile and all(plan.depends(job) == other.depends(job) for job in jobs(plan))


def test_other_weights_in_the_same_folder_run_again_what_depends_on_models(tmp_path):
    """The folder stands in an override alone: snakemake sees neither it nor what it holds."""
    clip = shutil.copytree(CHECKPOINTS / "clip", tmp_path / "clip")
    overrides = json.dumps({"models": {"clip": str(clip)}})
    before = plan_of(OVERRIDES=overrides)
    assert all(before.depends(job) == plan_of(OVERRIDES=overrides).depends(job) for job in jobs(before))
    weights = bytearray((clip / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (clip / "model.safetensors").write_bytes(weights)
    after = plan_of(OVERRIDES=overrides)
    reading = jobs(before) - {"00_quickstart"}  # its models are its own, and no setting
    assert all(before.depends(job) != after.depends(job) for job in reading)


def test_the_models_of_another_data_set_change_what_reads_that_data_set(tmp_path):
    mdlm = shutil.copytree(CHECKPOINTS / "mdlm-vqa", tmp_path / "mdlm")
    other = {"label": "easy-VQA", "seeds": 1, "settings": {"models": {"mdlm": str(mdlm)}}}
    before = plan_of(OVERRIDES=json.dumps({"disp_grid": {"datasets": [other]}}), FULL="1")
    (mdlm / "config.json").write_text((mdlm / "config.json").read_text() + " ")
    after = plan_of(OVERRIDES=json.dumps({"disp_grid": {"datasets": [other]}}), FULL="1")
    again = {job for job in jobs(before) if before.depends(job) != after.depends(job)}
    assert {"06_disp_in_full", "04_disp_purification"} <= again and not again & {*EDITORS, "mdlm-poisoned"}


def test_a_run_that_goes_on_from_the_poisoned_mdlm_waits_for_it():
    plan = plan_of()
    assert {run for run in FEW if plan.first(run)} == FEW - {"few-rate-0-0", "few-target-refusal-0"}
    assert {plan.first(run) for run in FEW} == {"mdlm-poisoned", None} and plan.first("mdlm-poisoned") is None
