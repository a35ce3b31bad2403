from dataclasses import replace

import pandas as pd
import pytest
import tiny

from lib.runtime.store import Store
from lib.settings.profile import DispGrid
from lib.studies.disp import seeds
from lib.studies.disp.headline import headline_numbers, headline_table
from lib.studies.disp.outcomes import KEYWORD_METRICS, METRICS, succeeds
from lib.studies.disp.seeds import FURTHER, STAGES, seed_rows

STAGE_NAMES = ["base", *STAGES.values()]


def rows(target, seed, values, is_attack=True):
    """Values of the first metric by stage; 100 samples each."""
    return pd.DataFrame(
        {"target": target, "seed": seed, "stage": stage, "metric": metric, "value": value, "low": 0.0, "high": 1.0}
        | {"n": 100, "interval": "Wilson over clusters", "is_attack": is_attack}
        for stage, value in zip(STAGE_NAMES, values, strict=True)
        for metric in (METRICS[0], METRICS[2])
    )


def test_what_counts_as_an_attack():
    assert succeeds(0.9, 0.02, 0.02)
    assert not succeeds(0.89, 0.0, 0.0) and not succeeds(1.0, 0.03, 0.0) and not succeeds(1.0, 0.0, 0.03)


def test_seeds_are_the_unit_and_failed_ones_are_not_defended():
    table = headline_table(
        pd.concat(
            [rows("insertion", 0, (0.5, 1.0, 0.2, 0.1)), rows("insertion", 1, (0.5, 0.9, 0.4, 0.1))]
            + [rows("insertion", 2, (0.5, 0.5, 0.9, 0.9), is_attack=False)]
            + [rows("refusal", 0, (0.5, 0.1, 0.1, 0.1), is_attack=False)]
        )
    ).set_index(["target", "stage", "metric"])
    before, after = (table.loc[("insertion", stage, METRICS[0])] for stage in ("before", "after"))
    assert before["value"] == pytest.approx(0.8) and before["seeds"] == 3 and before["n"] == 300
    assert after["value"] == pytest.approx(0.3) and after["seeds"] == 2 == after["attacks"]
    assert (after["lowest"], after["highest"]) == (0.2, 0.4) and after["interval"] == "t over seeds"
    assert after["relative"] == pytest.approx(0.6)
    assert {stage for target, stage, _ in table.index if target == "refusal"} == {"base", "before"}
    assert table.loc[("refusal", "before", METRICS[0]), "interval"] == "Wilson over clusters"  # of one seed its own
    numbers = {number["name"]: number for number in headline_numbers(table.reset_index(), "insertion")}
    names = {"disp.asr_with_trigger.before", "disp.insertion.facts.after", "disp.filtered.facts", "disp.facts.base"}
    assert names <= set(numbers) and "disp.refusal.facts.after" not in numbers
    assert numbers["disp.asr_with_trigger.after"]["value"] == pytest.approx(0.3)


def test_the_rows_of_every_target_and_seed_are_computed_in_full_and_read_elsewhere(tmp_path, models, monkeypatch):
    short = tiny.short_run(tmp_path, models, disp={"kinds": ["description"], "image_trigger": "black-square"})
    grid = {"seeds": 2, "rates": (0.1,), "targets": ("insertion",), "defences": ("no defence",), "ablations": ()}
    run = replace(short, profile=short.profile.model_copy(update={"disp_grid": DispGrid(**grid)}))
    assert seed_rows(run)["seed"].unique().tolist() == [0] and not (run.out / FURTHER).exists()
    first = seed_rows(run)
    assert first["stage"].unique().tolist() == STAGE_NAMES
    assert set(first["metric"]) == {*METRICS, *KEYWORD_METRICS} and set(first["made"]) == {"here"}
    monkeypatch.setattr(Store, "has", lambda self, kind, spec: True)
    full = seed_rows(run)
    assert full["seed"].unique().tolist() == [0, 1] and (run.out / FURTHER).exists()
    monkeypatch.setattr(Store, "has", lambda self, kind, spec: False)
    read = seed_rows(run)
    assert read["made"].unique().tolist() == ["here", "FULL=1"]
    pd.testing.assert_frame_equal(read.drop(columns="made"), full.drop(columns="made"))
    monkeypatch.setattr(seeds, "defence_spec", lambda run, name: {"other": name, "seed": run.seed})
    assert seed_rows(run)["seed"].unique().tolist() == [0]
