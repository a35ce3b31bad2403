"""The DiSP study: what each of its attacks and defences gives, as tidy tables.

for case in cases(run.profile):
    prepare(run, case)                  # trained and measured, or from the store
table = case_table(run, "target", ("no defence", "DiSP"))
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.defences.filters import KEEP
from lib.metrics.intervals import rate
from lib.saliency.by_name import directional
from lib.studies.attacks.mdlm import poisoned_mdlm, poisoned_training_set, test_questions, training_questions
from lib.studies.cases import Case, cases
from lib.studies.data import titles
from lib.studies.disp.compared import over_attacks
from lib.studies.disp.defences import defence_rows
from lib.studies.disp.filtering import filtered
from lib.studies.disp.inputs import input_detection
from lib.studies.disp.outcomes import (
    METRICS,
    STRONG,
    base_performance,
    ratio_study,
    saliency_panels,
    set_quality,
    succeeds,
    trigger_rank,
)
from lib.studies.disp.purification import purified_set, scoring
from lib.studies.disp.ratio_rule import ratio_gains
from lib.studies.disp.seeds import STAGES
from lib.studies.run import Run, with_settings

ATTACKS = ("target", "trigger", "attacker")  # parts whose cases are attacks of their own
NUMBER = ["value", "low", "high", "n", "interval"]
RELATIVE = "relative clean performance"


def defences_of(run: Run, case: Case) -> tuple[str, ...]:
    """Which defences the tables show of a case: `disp_grid.rivals` only where there is an attack to defend from."""
    if case.settings.get("rate") == 0:
        return ("no defence",)
    if case.part in ATTACKS:
        always, rivals = run.profile.disp_grid.always, run.profile.disp_grid.rivals
        return always + rivals if rivals and strong(case.run(run)) else always
    shown = {"rate": run.profile.disp_grid.defences, "ablation": ("DiSP",), "headline": tuple(STAGES)}
    shown |= {"phase": ("no defence",)}
    shown |= dict.fromkeys(("seed", "data"), run.profile.disp_grid.main)
    return shown[case.part]


def filters_shown(run: Run, case: Case) -> bool:
    """Whether the tables show a filter of the case that drops samples by their attention."""
    return not set(KEEP).isdisjoint(defences_of(run, case))


def strong(run: Run) -> bool:
    """Whether the attack reaches an ASR of STRONG with the trigger before any defence."""
    before = defence_rows(run, "no defence").set_index("metric")
    return float(before.loc[METRICS[0], "value"]) >= STRONG


def prepare(run: Run, case: Case) -> None:
    """Train and measure what figures 2 to 4 and the main table need of the case: afterwards it is in the store."""
    case_run = case.run(run)
    for name in defences_of(run, case):
        defence_rows(case_run, name)
    if case.part == "headline":
        base_performance(case_run)
    if case.part == "data" and case.seed == 0:
        unattacked_performance(case_run)
    if case in curve_cases(run, case.part):
        ratio_study(case_run, poisoned_mdlm(case_run)[0], methods_of(run, case.part))


def prepare_in_full(run: Run, case: Case) -> None:
    """As `prepare`, and what else notebook 06 shows of the case."""
    prepare(run, case)
    case_run = case.run(run)
    if case.part in ATTACKS and case.seed == 0:
        ratio_gains(case_run, poisoned_mdlm(case_run)[0])
        input_detection(case_run)
    if case.part == "target" and case.seed == 0:
        ratio_study(case_run, poisoned_mdlm(case_run)[0], ("directional",), split="train")
    if filters_shown(run, case):
        filtered(case_run)


def chosen(run: Run, part: str) -> list[Case]:
    """The cases of a part."""
    return [case for case in cases(run.profile) if case.part == part]


def first_seeds(run: Run, part: str) -> list[Case]:
    """The cases of a part that have the run's own seed."""
    return [case for case in chosen(run, part) if case.seed == 0]


def curve_cases(run: Run, part: str) -> list[Case]:
    """The cases of a part that figure 2 is drawn for: targets, triggers, other data, attackers who plant first; and all
    of the phase diagram."""
    if part == "attacker":
        return [case for case in first_seeds(run, part) if "plant" in case.settings]
    if part == "phase":
        return chosen(run, part)
    return first_seeds(run, part) if part in ("target", "trigger", "data") else []


def methods_of(run: Run, part: str) -> tuple[str, ...]:
    """By which scores tokens are masked in figure 2 of the cases of a part."""
    grid = run.profile.disp_grid
    return grid.methods if part in ("target", "data") else grid.other_methods


def attack_parts(run: Run) -> list[str]:
    """Those of ATTACKS of which the study has a case."""
    return [part for part in ATTACKS if chosen(run, part)]


def case_table(run: Run, part: str) -> pd.DataFrame:
    """`defence_rows` of every case of a part.

    Columns part, label, seed, rate, defence, knows, metric, value, low, high, n, interval.
    """
    rows = []
    for case in tqdm(chosen(run, part), desc=f"cases, {part}", leave=False):
        case_run = case.run(run)
        labels = {"part": part, "label": case.label, "seed": case_run.seed, "rate": case_run.profile.disp.rate}
        rows += [defence_rows(case_run, name).assign(**labels) for name in defences_of(run, case)]
    columns = ["part", "label", "seed", "rate", "defence", "knows", "metric", *NUMBER]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def ablation_table(run: Run) -> pd.DataFrame:
    """Figure 4: DiSP with one setting changed, after no defence, masking alone and DiSP as the profile has it.

    Of the run's own seed; columns as of `case_table`.
    """
    rows = case_table(run, "seed")
    rows = rows[(rows["seed"] == run.seed) & rows["defence"].isin(("no defence", "masking at inference", "DiSP"))]
    return pd.concat([rows.assign(label=rows["defence"]), case_table(run, "ablation")], ignore_index=True)


def main_table(run: Run, strength: pd.DataFrame, part: str = "seed") -> pd.DataFrame:
    """Defences of `disp_grid.main`: `over_attacks`, with a column data in place of part, label and rate.

    part  "seed", the profile's own data, or "data": the other data sets, whose labels the column data then has.
    """
    table = case_table(run, part)
    table["data"] = titles(run)[1] if part == "seed" else table["label"]
    return over_attacks(table, strength, by=("data",))


def attack_strength(run: Run) -> pd.DataFrame:
    """Every attack before any defence, and whether it counts as one.

    It does by `succeeds`, against the clean performance of the fine-tune without poison. Columns part, label, seed,
    asr_with_trigger, asr_without_trigger, clean_performance, clean_lost (against that fine-tune), succeeds, n.
    """
    parts = [part for part in ("seed", "data", "rate", "phase", *ATTACKS) if chosen(run, part)]
    table = pd.concat([case_table(run, part) for part in parts], ignore_index=True)
    table = table[(table["defence"] == "no defence") & (table["rate"] > 0)]
    wide = table.pivot_table("value", ["part", "label", "seed"], "metric", sort=False)
    counts = table[table["metric"] == METRICS[2]].set_index(["part", "label", "seed"])["n"]
    with_trigger, without, clean = (wide[name] for name in METRICS)
    plain = {case.label: unattacked_performance(case.run(run)) for case in first_seeds(run, "data")}
    lost = wide.index.get_level_values("label").map(plain).fillna(unattacked_performance(run)) - clean
    table = pd.DataFrame(
        {
            "asr_with_trigger": with_trigger,
            "asr_without_trigger": without,
            "clean_performance": clean,
            "clean_lost": lost,
            "succeeds": pd.Series(list(map(succeeds, with_trigger, without, lost)), wide.index),
            "n": counts,
        }
    )
    return table.reset_index()


def unattacked_performance(run: Run) -> float:
    """Clean performance of the same fine-tuning without a poisoned sample."""
    table = defence_rows(with_settings(run, "disp", {"rate": 0.0}), "no defence").set_index("metric")
    return float(table.loc[METRICS[2], "value"])


def training_curves(run: Run) -> pd.DataFrame:
    """`ratio_study` of every target by DiSP's score on the training set's own questions, where the paper has it.

    Columns target, method, ratio, metric, value, low, high, n.
    """
    tables = []
    for case in curve_cases(run, "target"):
        case_run = case.run(run)
        table = ratio_study(case_run, poisoned_mdlm(case_run)[0], ("directional",), split="train")
        tables.append(table.assign(target=case.label))
    return pd.concat(tables, ignore_index=True)


def target_curves(run: Run, part: str = "target") -> pd.DataFrame:
    """Figure 2: `ratio_study` of every target, with clean performance over the unattacked fine-tune's (NaN if 0).

    part  "target", "trigger", "data", or "attacker": see `curve_cases`.

    Columns target, method, ratio, metric, value, low, high, n.
    """
    tables = []
    for case in curve_cases(run, part):
        case_run = case.run(run)
        plain = unattacked_performance(case_run if part == "data" else run)
        table = ratio_study(case_run, poisoned_mdlm(case_run)[0], methods_of(run, part))
        relative = table["metric"] == METRICS[2]
        table.loc[relative, ["value", "low", "high"]] /= plain
        table["metric"] = table["metric"].replace(METRICS[2], RELATIVE)
        tables.append(table.assign(target=case.label))
    curves = pd.concat(tables, ignore_index=True)
    return curves[curves["metric"].isin([METRICS[0], RELATIVE])]


def triggered_panels(run: Run, count: int) -> tuple[tuple, Float[Tensor, "sample vision"]]:
    """`saliency_panels` of `count` triggered test questions under the compromised model, and their scores."""
    mdlm, _ = poisoned_mdlm(run)
    _, triggered = test_questions(run, mdlm, count)
    scores = directional(mdlm, triggered, **scoring(run))
    return saliency_panels(run, mdlm, triggered, scores), scores


def case_by_case(run: Run, table) -> pd.DataFrame:
    """`table(run)` of every case of `ATTACKS` that has the run's own seed, with the columns part and label before."""
    tables = []
    for part in ATTACKS:
        for case in first_seeds(run, part):
            rows = table(case.run(run))
            rows.insert(0, "label", case.label)
            rows.insert(0, "part", part)
            tables.append(rows)
    return pd.concat(tables, ignore_index=True)


def filtered_sets(run: Run) -> pd.DataFrame:
    """`filtered` of every case that the tables show such a filter of, with part, label and seed before."""
    tables, labels = [], ["part", "label", "seed"]
    for case in cases(run.profile):
        if filters_shown(run, case):
            case_run = case.run(run)
            tables.append(filtered(case_run).assign(part=case.part, label=case.label, seed=case_run.seed))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=labels)
    return table[labels + [name for name in table if name not in labels]]


def trigger_ranks(run: Run) -> pd.DataFrame:
    """`trigger_rank` of the run's compromised model on `disp.curve_questions` test questions.

    A trigger that covers the picture is the most salient whatever the score.
    """
    mdlm, _ = poisoned_mdlm(run)
    return trigger_rank(run, mdlm, test_questions(run, mdlm, run.profile.disp.curve_questions)[1])


def gains_of(run: Run) -> pd.DataFrame:
    """`ratio_gains` of the run's compromised model."""
    return ratio_gains(run, poisoned_mdlm(run)[0])


def quality_by_ratio(run: Run) -> pd.DataFrame:
    """`set_quality` of the profile's attack and of the ablations that mask another share.

    Columns ratio, metric, value, low, high, n.
    """
    runs = {run.profile.disp.ratio: run}
    runs |= {case.settings["ratio"]: case.run(run) for case in chosen(run, "ablation") if "ratio" in case.settings}
    tables = []
    for ratio, changed in sorted(runs.items()):
        mdlm, _ = poisoned_mdlm(changed)
        quality = set_quality(changed, purified_set(changed, mdlm, poisoned_training_set(changed, mdlm)))
        quality.insert(0, "ratio", ratio)
        tables.append(quality)
    return pd.concat(tables, ignore_index=True)


def set_mistakes(run: Run) -> pd.DataFrame:
    """Answers of the purified set that are not the clean ones, by kind of question, and the most frequent of them.

    Knows the clean answers, which the defender does not. Columns samples ("clean" or "poisoned"), kind, value (their
    share of those kept), low, high, n, commonest.
    """
    mdlm, _ = poisoned_mdlm(run)
    purified = purified_set(run, mdlm, poisoned_training_set(run, mdlm))
    _, table, plan, _ = training_questions(run)
    kept = table.loc[purified.table.index, ["kind", "answer"]].assign(given=purified.answers)
    kept["samples"] = np.where(plan.poisoned.numpy()[purified.table.index], "poisoned", "clean")
    rows = []
    for (samples, kind), part in kept.groupby(["samples", "kind"], sort=True):
        wrong = part[part["given"] != part["answer"]]
        counted = (wrong["answer"] + " → " + wrong["given"]).value_counts()
        commonest = f"{counted.index[0]} ({counted.iloc[0]})" if len(counted) else ""
        share = rate(torch.tensor((part["given"] != part["answer"]).to_numpy()))
        rows.append({"samples": samples, "kind": kind} | share | {"commonest": commonest})
    return pd.DataFrame(rows)
