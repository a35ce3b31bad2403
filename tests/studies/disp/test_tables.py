import json
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from attacked import outcome, strength

from lib.settings.profile import DispGrid
from lib.studies.attacks.mdlm import poisoned_mdlm, poisoned_training_set, training_questions
from lib.studies.cases import cases
from lib.studies.disp import tables as disp_grid
from lib.studies.disp.defences import DEFENCES, defence_rows
from lib.studies.disp.outcomes import METRICS, ratio_study
from lib.studies.disp.tables import RELATIVE

SETTINGS = {"seeds": 2, "rates": [0.2], "targets": ["refusal"], "triggers": ["blend"], "rule_questions": 6}
SETTINGS |= {"defences": ["no defence", "DiSP"], "ablations": [{"label": "half", "settings": {"ratio": 0.5}}]}
ATTACKERS = {"hidden": {"hide": 0.1}, "planted": {"hide": 0.1, "plant": {"hide": 0.0}}}
SETTINGS |= {"attackers": [{"label": label, "settings": settings} for label, settings in ATTACKERS.items()]}
SETTINGS |= {"protocols": [], "main": ["no defence", "DiSP", "STRIP-like"], "methods": ["random"]}
SETTINGS["other_methods"] = ["random"]
SETTINGS |= {"datasets": [{"label": "other", "seeds": 2, "settings": {"disp": {"questions": 24}}}]}


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    short = tiny.short_run(tmp_path_factory.mktemp("grid"), models, disp={"ratios": [0.0, 1.0]})
    section = DispGrid.model_validate_json(json.dumps(SETTINGS))
    return replace(short, profile=short.profile.model_copy(update={"disp_grid": section}))


def test_every_case_shows_its_defences(run):
    shown = {case.name: disp_grid.defences_of(run, case) for case in cases(run.profile)}
    main = ("no defence", "DiSP", "STRIP-like")
    assert shown["disp-seed-seed-1-1"] == shown["disp-data-other-1"] == main
    assert shown["disp-ablation-half-0"] == ("DiSP",)
    plain = DispGrid.model_validate_json(json.dumps({k: v for k, v in SETTINGS.items() if k != "main"}))
    assert plain.main == tuple(DEFENCES)
    assert shown["disp-rate-0-0"] == ("no defence",) and shown["disp-rate-0.2-0"] == ("no defence", "DiSP")
    own = ("no defence", "masking at inference", "DiSP")
    assert shown["disp-target-refusal-0"] == shown["disp-trigger-blend-0"] == own


def test_rivals_meet_strong_attacks_alone_and_what_they_keep_is_told(run, monkeypatch):
    monkeypatch.setattr(disp_grid, "strong", lambda run: run.profile.disp.target == "refusal")
    rival = "BYE's score, half kept"
    grid = run.profile.disp_grid.model_copy(update={"rivals": (rival,)})
    own = replace(run, profile=run.profile.model_copy(update={"disp_grid": grid}))
    shown = {case.name: disp_grid.defences_of(own, case) for case in cases(own.profile)}
    assert {name for name, defences in shown.items() if rival in defences} == {"disp-target-refusal-0"}
    table = disp_grid.filtered_sets(own)
    assert table["label"].tolist() == ["refusal"] * 2 and table["part"].tolist() == ["target"] * 2
    assert table["seed"].tolist() == [0, 0]
    half = table[table["defence"] == rival].iloc[0]
    assert half["dropped"] == 0.5 and half["n"] == run.profile.disp.questions / 2
    monkeypatch.setattr(disp_grid, "strong", lambda run: False)
    assert disp_grid.filtered_sets(own).empty


def test_a_strong_attack_is_one_that_mostly_succeeds(run, monkeypatch):
    for value, strong in ((0.89, False), (0.9, True)):
        table = pd.DataFrame({"metric": METRICS, "value": [value, 0.0, 1.0]})
        monkeypatch.setattr(disp_grid, "defence_rows", lambda run, name, table=table: table)
        assert disp_grid.strong(run) is strong


def test_what_figures_2_to_4_need_is_prepared_without_what_they_do_not(run, monkeypatch):
    grid = run.profile.disp_grid.model_copy(update={"always": ("no defence",)})
    own = replace(run, profile=run.profile.model_copy(update={"disp_grid": grid}))
    case = next(case for case in cases(own.profile) if case.name == "disp-target-refusal-0")
    tried, asked = [], []
    monkeypatch.setattr(disp_grid, "defence_rows", lambda run, name: tried.append((run.profile.disp.target, name)))
    monkeypatch.setattr(disp_grid, "ratio_study", lambda run, mdlm, methods: asked.append(methods))
    for name in ("ratio_gains", "input_detection", "filtered"):
        monkeypatch.setattr(disp_grid, name, None)
    disp_grid.prepare(own, case)
    assert tried == [("refusal", "no defence")] and asked == [("random",)]


def test_an_ablation_stands_beside_disp_as_it_is(run):
    table = disp_grid.ablation_table(run)
    assert table["label"].unique().tolist() == ["no defence", "DiSP", "half"] and set(table["seed"]) == {run.seed}
    own = defence_rows(run, "DiSP")
    pd.testing.assert_frame_equal(table[table["label"] == "DiSP"].reset_index(drop=True)[list(own)], own)
    assert table.loc[table["label"] == "half", "defence"].unique().tolist() == ["DiSP"]


def test_a_part_without_cases_gives_an_empty_table(run):
    none = replace(run, profile=run.profile.model_copy(update={"disp_grid": run.profile.disp_grid.model_copy(
        update={"ablations": ()})}))  # fmt: skip
    table = disp_grid.case_table(none, "ablation")
    assert table.empty and list(table) == list(disp_grid.case_table(run, "ablation"))


def test_a_table_holds_the_rows_of_its_cases(run):
    table = disp_grid.case_table(run, "rate")
    assert table["label"].unique().tolist() == ["0", "0.2"] and table["rate"].unique().tolist() == [0, 0.2]
    case = next(case for case in cases(run.profile) if case.name == "disp-rate-0.2-0")
    expected = defence_rows(case.run(run), "DiSP")
    found = table[(table["rate"] == 0.2) & (table["defence"] == "DiSP")].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[list(expected)], expected)
    assert disp_grid.case_table(run, "ablation")["defence"].unique().tolist() == ["DiSP"]


def test_the_main_table_is_of_the_seeds_means(monkeypatch, run):
    rows = [outcome(value, seed=seed) for seed, value in enumerate((0.5, 0.5, 0.6))]
    monkeypatch.setattr(disp_grid, "case_table", lambda run, part: pd.DataFrame(rows))
    (row,) = disp_grid.main_table(run, strength(rows)).to_dict("records")
    assert (row["n"], row["seeds"], row["lowest"], row["highest"], row["attacks"]) == (3000, 3, 0.5, 0.6, 3)
    half = 4.30265 * (0.01 / 3) ** 0.5 / 3**0.5  # Student's with two degrees of freedom, and the seeds' deviation
    assert [row["value"], row["low"], row["high"]] == pytest.approx([1.6 / 3, 1.6 / 3 - half, 1.6 / 3 + half])
    assert row["interval"] == "t over seeds" and row["data"] == "faces: questions"
    two = [outcome(0.5, seed=seed, label=label) for label, seed in (("here", 0), ("there", 0), ("here", 1))]
    monkeypatch.setattr(disp_grid, "case_table", lambda run, part: pd.DataFrame(two))
    table = disp_grid.main_table(run, strength(two), "data").set_index("data")
    assert table["seeds"].to_dict() == {"here": 2, "there": 1}
    alone = table.loc["there", ["value", "low", "high", "n", "interval"]].tolist()
    assert alone == [0.5, 0.49, 0.52, 1000, "Wilson over clusters"]  # of one seed its own


def test_an_attack_that_is_weak_loud_or_costly_is_listed_as_failed(monkeypatch, run):
    cells = {"good": (0.95, 0.015, 0.965), "weak": (0.8, 0, 0.98), "loud": (1, 0.03, 0.98), "costly": (1, 0, 0.95)}
    rows = [
        outcome(value, label=label, seed=0, defence="no defence", metric=metric)
        for label, values in cells.items()
        for metric, value in zip(METRICS, values, strict=True)
    ]
    empty = pd.DataFrame(columns=list(rows[0]))
    monkeypatch.setattr(disp_grid, "case_table", lambda run, part: pd.DataFrame(rows) if part == "seed" else empty)
    monkeypatch.setattr(disp_grid, "unattacked_performance", lambda run: 0.98)
    table = disp_grid.attack_strength(run).set_index("label")
    assert table["succeeds"].to_dict() == {"good": True, "weak": False, "loud": False, "costly": False}
    assert table["seed"].tolist() == [0] * 4
    assert table["clean_lost"].to_dict() == pytest.approx({"good": 0.015, "weak": 0, "loud": 0, "costly": 0.03})


def test_an_attack_on_other_data_loses_accuracy_against_the_fine_tune_there(monkeypatch, run):
    def rows(part):
        labels = {"data": [("other", 0), ("other", 1)], "seed": [("seed 0", 0)]}.get(part, [])
        cells = [(label, seed, m, v) for label, seed in labels for m, v in zip(METRICS, (1, 0, 0.9), strict=True)]
        made = pd.DataFrame(cells, columns=["label", "seed", "metric", "value"])
        return made.assign(part=part, rate=0.1, defence="no defence", n=50)

    plain = {20: 0.95, 24: 0.905}  # by how many questions are fine-tuned on
    monkeypatch.setattr(disp_grid, "case_table", lambda run, part: rows(part))
    monkeypatch.setattr(disp_grid, "unattacked_performance", lambda run: plain[run.profile.disp.questions])
    table = disp_grid.attack_strength(run).set_index(["label", "seed"])
    lost = {("seed 0", 0): 0.05, ("other", 0): 0.005, ("other", 1): 0.005}
    assert table["clean_lost"].to_dict() == pytest.approx(lost)
    assert table["succeeds"].to_dict() == {key: value < 0.02 for key, value in lost.items()}


def test_curves_are_relative_to_the_fine_tune_without_poison(run, monkeypatch):
    monkeypatch.setattr(disp_grid, "unattacked_performance", lambda run: 0.8)
    few_right = lambda mdlm, data, *_, **__: [*data.answers[:3], "", "", ""]  # noqa: E731
    monkeypatch.setattr("lib.studies.disp.outcomes.answer", few_right)
    table = disp_grid.target_curves(run)
    assert table["target"].unique().tolist() == ["insertion", "refusal"]
    assert table["metric"].unique().tolist() == [METRICS[0], RELATIVE]
    own = ratio_study(run, poisoned_mdlm(run)[0], ("random",))
    assert own.loc[own["metric"] == METRICS[2], "value"].tolist() == [0.5, 0.5]
    found = table[(table["target"] == "insertion") & (table["metric"] == RELATIVE)]
    assert found["value"].tolist() == pytest.approx([0.625, 0.625])
    asr = table[(table["target"] == "insertion") & (table["metric"] == METRICS[0])]
    assert asr["value"].tolist() == [0, 0]
    assert disp_grid.target_curves(run, "data")["target"].unique().tolist() == ["other"]


def test_figure_2_is_drawn_of_targets_triggers_other_data_and_attackers_who_plant_first(run):
    parts = ("target", "trigger", "data", "attacker", "rate")
    named = [[case.label for case in disp_grid.curve_cases(run, part)] for part in parts]
    assert named == [["insertion", "refusal"], ["checker", "blend"], ["other"], ["planted"], []]
    ranks = disp_grid.trigger_ranks(run).set_index("metric")
    assert ranks["value"].between(0, 1).all() and set(ranks["n"]) == {run.profile.disp.curve_questions}


def test_the_purified_sets_of_every_ratio_and_what_is_prepared(run, monkeypatch):
    quality = disp_grid.quality_by_ratio(run)
    assert quality["ratio"].unique().tolist() == [0.1, 0.5] and quality["n"].max() == 18
    case = next(case for case in cases(run.profile) if case.name == "disp-trigger-blend-0")
    disp_grid.prepare_in_full(run, case)

    def refuse(*_, **__):
        raise AssertionError("computed again")

    for name in ("defences.judged", "ratio_rule.masking_gains", "inputs.input_scores"):
        monkeypatch.setattr(f"lib.studies.disp.{name}", refuse)
    disp_grid.prepare_in_full(run, case)
    gains = disp_grid.gains_of(case.run(run))
    assert gains["ratio"].tolist() == [0.0, 1.0] and set(gains["n"]) == {6}


def test_mistakes_of_the_purified_set_are_told_by_kind(run, monkeypatch):
    mdlm, _ = poisoned_mdlm(run)
    data, (_, table, plan, _) = poisoned_training_set(run, mdlm), training_questions(run)
    right = data.answered(data.responses, table["answer"].tolist())
    monkeypatch.setattr(disp_grid, "purified_set", lambda *_: right)
    assert disp_grid.set_mistakes(run)["value"].eq(0).all() and disp_grid.set_mistakes(run)["commonest"].eq("").all()
    answers, first = list(right.answers), plan.poisoned.nonzero()[0, 0].item()
    answers[first] = "no"
    wrong = right.answered(data.responses, answers)[torch.arange(len(data)) >= first]
    monkeypatch.setattr(disp_grid, "purified_set", lambda *_: wrong)
    found = disp_grid.set_mistakes(run)
    assert found["n"].sum() == len(data) - first
    row = found[(found["samples"] == "poisoned") & (found["kind"] == table["kind"][first])].iloc[0]
    assert row["value"] == 1 / row["n"] and row["commonest"] == f"{table['answer'][first]} → no (1)"
    assert found["value"].gt(0).sum() == 1
