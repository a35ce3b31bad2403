"""What `make figures` runs, by its settings alone."""

import json

import pytest
import yaml
from pipeline import jobs

from lib.settings.load import load_profile
from lib.studies.cases import attacks, headline_attacks
from lib.studies.pipeline import READS, planned

FEW = {"few-seed-seed-0-0", "few-rate-0-0", "few-rate-0.1-0", "few-target-insertion-0", "few-target-refusal-0"}
FEW |= {"few-ablation-saliency-random-0"}
EDITORS = {attack.name for attack in headline_attacks(load_profile("smoke"))}
NOTEBOOKS = ("00_quickstart", "01_poisoning", "02_training", "03_collapse_analysis", "04_disp_purification")


def plan_of(**settings):
    return planned({"PROFILE": "smoke"} | settings)


def test_bad_settings_are_refused_in_one_sentence():
    refused = [
        ({"PROFILE": "paper"}, "models.mdlm='data/local/llada-v' must be a folder that is there"),
        ({"PROFILE": "lptop"}, "'lptop' does not exist: choose one of disp-authors, laptop, paper, smoke"),
        ({"OVERRIDES": '{"disp": {"rates": 1}}'}, "disp.rates is not a known key"),
        ({"OVERRIDES": '{"disp": {"rate": 1.5}}'}, "disp.rate=1.5 is refused"),
        ({"OVERRIDES": '{"disp": '}, "OVERRIDES='{\"disp\": '"),
        ({"SEED": "one"}, "SEED='one' must be an integer from 0"),
        ({"SEED": "-1"}, "SEED='-1' must be an integer from 0"),
        ({"STUDY": "colapse"}, "STUDY='colapse' must be one of all, collapse, disp"),
        ({"FULL": "yes"}, "FULL='yes' must be one of 0, 1"),
        ({"EXECUTOR": "slrum"}, "EXECUTOR='slrum' must be one of local, slurm, kubernetes"),
    ]
    for settings, sentence in refused:
        with pytest.raises(ValueError) as refusal:
            plan_of(**settings)
        assert sentence in str(refusal.value) and "\n" not in str(refusal.value), settings


def test_what_is_not_set_is_the_laptop_profile_on_the_cpu():
    plan = planned({"PROFILE": "", "SEED": "", "OUT": "", "FULL": ""})
    assert (plan.profile, plan.seed, plan.device, plan.out) == (load_profile("laptop"), 0, "cpu", "figures")
    assert plan.build == "build/laptop" and plan.notebooks == NOTEBOOKS
    assert plan_of().out == "build/smoke/figures"


def test_jobs_get_settings_as_they_were_given():
    """Quotes and spaces pass through, and 1e-05 stays a number where YAML reads it."""
    quoted = {"label": 'two "short" rounds', "settings": {"rounds": 2}}
    overrides = {"collapse": {"rate": 1e-05}, "disp_grid": {"ablations": [quoted]}}
    plan = plan_of(SEED="3", OUT="a folder", OVERRIDES=json.dumps(overrides), DEVICE="cuda")
    given = plan.environment()
    parameters = yaml.safe_load(given["PARAMETERS"])
    chosen = {"profile": "smoke", "seed": 3, "device": "cuda", "out": "a folder", "overrides": overrides}
    assert parameters == chosen and json.loads(given["OVERRIDES"]) == overrides
    assert [given[n] for n in ("PROFILE", "SEED", "DEVICE", "OUT")] == ["smoke", "3", "cuda", "a folder"]
    assert planned({**given}) == plan and plan_of(OVERRIDES="{collapse: {rate: 0.5}}").profile.collapse.rate == 0.5


def test_a_study_runs_alone_and_in_full():
    own = {attack.name for attack in attacks(load_profile("smoke"))} | {"collapse-mdlm-or", "collapse-mdlm-and"}
    assert len(EDITORS) == 6 and len(own) == 13 and own > EDITORS
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


def test_a_run_that_goes_on_from_the_poisoned_mdlm_waits_for_it():
    plan = plan_of()
    assert {run for run in FEW if plan.first(run)} == FEW - {"few-rate-0-0", "few-target-refusal-0"}
    assert {plan.first(run) for run in FEW} == {"mdlm-poisoned", None} and plan.first("mdlm-poisoned") is None
