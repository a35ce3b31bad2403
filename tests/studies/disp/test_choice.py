from dataclasses import replace

import pandas as pd
import pytest
import tiny

from lib.settings.profile import DispGrid, Variation
from lib.studies.disp import choice
from lib.studies.disp.choice import largest_kept, ratio_choice, tuning_choice
from lib.studies.disp.outcomes import METRICS


@pytest.mark.parametrize(("kept", "ratio"), [([1, 0.95, 0.9, 0.5], 0.3), ([1, 0.8, 0.95, 0.5], 0.0), ([1] * 4, 0.6)])
def test_the_ratio_is_the_largest_up_to_which_all_keep_enough(kept, ratio):
    table = pd.DataFrame({"ratio": [0.0, 0.1, 0.3, 0.6], "kept": kept})
    assert largest_kept(table) == ratio == largest_kept(table[::-1])


@pytest.mark.parametrize("kept", [0.5, float("nan")])
def test_where_no_ratio_keeps_enough_none_is_chosen(kept):
    assert largest_kept(pd.DataFrame({"ratio": [0.3], "kept": [kept]})) is None


def test_the_ratio_is_chosen_on_validation_questions(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)

    def study(run, mdlm, methods, split):
        assert methods == ("directional",) and split == "validation"
        values = {0.0: (1.0, 0.8), 0.3: (0.1, 0.76), 0.5: (0.0, 0.4)}
        return pd.DataFrame(
            {"ratio": ratio, "metric": metric, "value": value}
            for ratio, pair in values.items()
            for metric, value in zip((METRICS[0], METRICS[2]), pair, strict=True)
        )

    monkeypatch.setattr(choice, "ratio_study", study)
    monkeypatch.setattr(choice, "poisoned_mdlm", lambda run: (None, None))
    table = ratio_choice(run).set_index("ratio")
    assert table["kept"].tolist() == pytest.approx([1, 0.95, 0.5]) and table["chosen"].tolist() == [False, True, False]
    assert table["asr_with_trigger"].tolist() == [1.0, 0.1, 0.0]


def test_passes_are_chosen_among_those_that_clean(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    tunings = tuple(Variation(label=f"{steps}", settings={"steps": steps}) for steps in (1, 2, 3))
    grid = DispGrid(seeds=1, rates=(), targets=(), defences=("no defence",), ablations=(), tunings=tunings)
    run = replace(run, profile=run.profile.model_copy(update={"disp_grid": grid}))
    results = {1: (0.5, 0.99), 2: (0.0, 0.9), 3: (0.02, 0.95)}

    def purified(case_run):
        disp = case_run.profile.disp
        assert disp.watch_questions == run.profile.disp.curve_questions
        asr, clean = results[disp.purify.steps]
        early = {"step": 0, "asr_with_trigger": 1.0, "asr_without_trigger": 0.0, "clean_performance": 1.0}
        last = {"step": 9, "asr_with_trigger": asr, "asr_without_trigger": 0.0, "clean_performance": clean}
        return None, pd.DataFrame([early, last, {"step": 10}])

    monkeypatch.setattr(choice, "purified_mdlm", purified)
    table = tuning_choice(run)
    assert table["steps"].tolist() == [1, 2, 3] and table["chosen"].tolist() == [False, False, True]
    assert table["clean_performance"].tolist() == [0.99, 0.9, 0.95]


def test_data_without_validation_are_asked_their_training_questions(tmp_path, models, monkeypatch):
    run, splits = tiny.short_run(tmp_path, models), []

    def study(run, mdlm, methods, split):
        splits.append(split)
        rows = [{"ratio": 0.0, "metric": metric, "value": 1.0} for metric in (METRICS[0], METRICS[2])]
        return pd.DataFrame(rows)

    monkeypatch.setattr(choice, "ratio_study", study)
    monkeypatch.setattr(choice, "poisoned_mdlm", lambda run: (None, None))
    monkeypatch.setattr(choice, "watch_split", lambda run, kind: "test")
    assert ratio_choice(run)["chosen"].tolist() == [True] and splits == ["train"]


def test_without_tunings_there_is_nothing_to_choose(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    grid = run.profile.disp_grid.model_copy(update={"tunings": ()})
    assert tuning_choice(replace(run, profile=run.profile.model_copy(update={"disp_grid": grid}))).empty
