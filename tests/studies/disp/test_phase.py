from dataclasses import replace

import pandas as pd
import pytest
import tiny

from lib.settings.profile import DispGrid
from lib.studies.disp import phase
from lib.studies.disp.outcomes import METRICS
from lib.studies.disp.phase import COLUMNS, phase_curves, phase_table


@pytest.fixture
def run(tmp_path, models):
    short = tiny.short_run(tmp_path, models)
    grid = DispGrid(seeds=2, rates=(0.1,), targets=(), defences=("no defence",), ablations=(), sizes=(0.125, 0.5))
    return replace(short, profile=short.profile.model_copy(update={"disp_grid": grid}))


def test_the_phase_diagram_is_of_the_seeds_whose_attack_succeeded(run, monkeypatch):
    """Of the larger trigger one of two seeds."""

    def before(case_run, name):
        weak = case_run.profile.disp.trigger_size == 0.5 and case_run.seed == 1
        return pd.DataFrame({"metric": METRICS, "value": (0.5 if weak else 1.0, 0.0, 0.97)})

    def study(case_run, mdlm, methods):
        assert methods == run.profile.disp_grid.other_methods
        value = case_run.profile.disp.trigger_size + case_run.seed / 10
        rows = [{"method": "random", "ratio": 0.3, "metric": metric, "value": value, "n": 7} for metric in METRICS[:2]]
        return pd.DataFrame(rows)

    monkeypatch.setattr(phase, "unattacked_performance", lambda run: 0.98)
    monkeypatch.setattr(phase, "defence_rows", before)
    monkeypatch.setattr(phase, "ratio_study", study)
    monkeypatch.setattr(phase, "poisoned_mdlm", lambda case_run: (None, None))
    tokens = {0.125: 1, 0.5: 16}
    covered = lambda case_run, mdlm: tokens[case_run.profile.disp.trigger_size]  # noqa: E731
    monkeypatch.setattr(phase, "covered_tokens", covered)
    table = phase_table(run)
    assert list(table) == COLUMNS and set(table["metric"]) == {METRICS[0]}
    small, large = table.set_index("tokens").loc[1], table.set_index("tokens").loc[16]
    assert small[["value", "low", "high"]].tolist() == pytest.approx([0.175, 0.125, 0.225])
    assert (small["seeds"], small["n"], large["seeds"], large["n"]) == (2, 14, 1, 7)
    assert "Means over 2 seeds" in phase_curves(table).get_supxlabel()


def test_without_an_attack_there_is_nothing_to_show(run, monkeypatch):
    monkeypatch.setattr(phase, "unattacked_performance", lambda run: 1.0)
    failed = pd.DataFrame({"metric": METRICS, "value": (0.1, 0.0, 1.0)})
    monkeypatch.setattr(phase, "defence_rows", lambda case_run, name: failed)
    assert phase_table(run).empty


def test_a_larger_trigger_covers_more_tokens(run, models):
    from lib.models.mdlm import Mdlm
    from lib.studies.run import with_settings

    mdlm = Mdlm.load(models["mdlm"])
    sizes = (None, 0.125, 0.25, 0.375, 0.5)
    counts = [phase.covered_tokens(with_settings(run, "disp", {"trigger_size": s}), mdlm) for s in sizes]
    assert counts == [1, 1, 4, 9, 16]
    in_pixels = {"trigger_pixels": 17, "trigger_position": [0.0, 1.0]}
    assert phase.covered_tokens(with_settings(run, "disp", in_pixels), mdlm) == 9
