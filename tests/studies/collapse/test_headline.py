from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny

from lib.runtime.store import Store
from lib.studies.attacks.editor import editor_spec
from lib.studies.cases import headline_attacks
from lib.studies.collapse import headline as collapse_table
from lib.studies.collapse.editor import QUANTITIES
from lib.studies.collapse.headline import (
    ADDED,
    ASR,
    FURTHER,
    conclusion,
    headline_numbers,
    headline_rows,
    headline_table,
    paper_table,
    verdict,
)
from lib.studies.run import with_profile

TEXT, IMAGE, FAILED = "collapsed onto text", "collapsed onto image", "failed attack"
PAIRS = {"white-box": "mignneko", "eyeglasses": "anonymous", "stop-sign": "latte coffee"}
T = 12.7062047  # Student's with one degree of freedom, 97.5 %


def attack(label="white-box", protocol="or", seed=0, part="pair", rate=0.05, decision=TEXT, phi=(0.1, 0.8), cti=-0.1):
    """One row as `attack_row` gives it: a gain of 2, and a null of 0.05, 0.02 and 0.01."""
    pair = {"image_trigger": label, "text_trigger": PAIRS[label]}
    row = {"part": part, "label": label, "protocol": protocol, "seed": seed, "rate": rate, "n": 96} | pair
    row |= {"made": "FULL=1" if seed else "here"}
    succeeded = decision != FAILED
    row |= {"decision": decision, "is_attack": succeeded}
    numbers = dict(zip(ASR, (0.0, 0.1, 1.0, 1.0 if succeeded else 0.5), strict=True))
    numbers |= {"fidelity": 0.06 + 0.01 * seed, "null_fidelity": 0.05}
    null = dict(zip(QUANTITIES, (0.05, 0.02, 0.01), strict=True))
    found = dict(zip(QUANTITIES, (*phi, cti), strict=True))
    numbers |= {f"null_{name}": value for name, value in null.items()}
    numbers |= {name: value if succeeded else None for name, value in found.items()}
    numbers |= {f"added_{name}": (value - null[name]) / 2 if succeeded else None for name, value in found.items()}
    for name, value in numbers.items():
        known = value is not None
        row |= {name: value, f"{name}_low": value - 0.01 if known else None}
        row |= {f"{name}_high": value + 0.01 if known else None}
    return row


def rows(*attacks):
    return pd.DataFrame(attacks)


def ends(name):
    return [name, f"{name}_low", f"{name}_high"]


@pytest.fixture
def table():
    """A pair of two seeds, one that fails once of two, one that fails; and one on the control, of one seed."""
    made = [attack(seed=0), attack(seed=1, phi=(0.3, 0.6), cti=0.1)]
    made += [attack("eyeglasses", seed=0), attack("eyeglasses", seed=1, decision=FAILED)]
    made += [attack("stop-sign", "and", decision=FAILED)]
    made += [attack(part="control", protocol="and", decision=IMAGE, phi=(1.45, 0.02), cti=0.0)]
    return headline_table(rows(*made))


def test_a_configuration_is_its_seeds_means_with_t_intervals(table):
    assert table["label"].tolist() == [
        "white box + mignneko, OR",
        "eyeglasses + anonymous, OR",
        "stop sign + latte coffee, AND",
        "white box + mignneko, AND, control encoder",
    ]
    assert table["name"].tolist() == ["white-box", "eyeglasses", "stop-sign", "control"]
    assert table["seeds"].tolist() == [2, 2, 1, 1] and table["attacks"].tolist() == [2, 1, 0, 1]
    assert table["here"].tolist() == [1, 1, 1, 1]
    first = table.iloc[0]
    half = T * (0.3 - 0.1) / 2**0.5 / 2**0.5
    assert first[ends("phi_image")].tolist() == pytest.approx([0.2, 0.2 - half, 0.2 + half])
    assert first[["added_phi_text", "added_cti"]].tolist() == pytest.approx([0.34, -0.005])
    half = T * 0.01 / 2
    assert first[ends("fidelity")].tolist() == pytest.approx([0.065, 0.065 - half, 0.065 + half])
    assert first[["asr_none", "asr_image", "asr_text", "asr_both", "n"]].tolist() == [0, 0.1, 1, 1, 96]
    wilson = 1.959964**2 / (2 * 96 + 1.959964**2)  # of all 192 edits: two seeds that agree are no certainty
    assert first[ends("asr_none")].tolist() == pytest.approx([0, 0, wilson])
    assert first[ends("asr_text")].tolist() == pytest.approx([1, 1 - wilson, 1])


def test_the_null_keeps_its_own_interval(table):
    assert table["null_phi_image"].tolist() == [0.05] * 4
    assert table["null_phi_image_low"].tolist() == pytest.approx([0.04] * 4)
    assert table["null_fidelity_high"].tolist() == pytest.approx([0.06] * 4)


def test_failed_attacks_have_success_and_no_attribution(table):
    partly, failed = table.iloc[1], table.iloc[2]
    assert partly["asr_both"] == 0.75 and partly["phi_text"] == 0.8 and np.isnan(partly["phi_text_low"])
    assert failed["asr_both"] == 0.5 and failed["null_cti"] == 0.01
    assert failed[[*QUANTITIES, *ADDED]].isna().all() and failed["verdict"] == FAILED


def test_the_paper_stands_beside_its_pairs_at_its_rate_alone(table):
    assert table["paper_phi_text"].iloc[:3].tolist() == [0.9743, 0.7376, 1.0033]
    assert table["paper_cti"].iloc[3:].isna().all()
    assert headline_table(rows(attack(rate=0.1)))["paper_cti"].isna().all()


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ([TEXT] * 3, TEXT),
        ([FAILED] * 2, FAILED),
        ([TEXT, FAILED, TEXT], f"{TEXT} (2 of 3 seeds), {FAILED} (1 of 3 seeds)"),
    ],
)
def test_the_verdict_is_what_the_seeds_agree_on(decisions, expected):
    assert verdict(pd.DataFrame({"decision": decisions})) == expected


def test_headline_numbers_are_named_and_say_their_seeds(table):
    numbers = {number["name"]: number for number in headline_numbers(table)}
    whole = {f"collapse.{pair}.{name}" for pair in ("white-box.or", "eyeglasses.or", "control.and") for name in ADDED}
    whole |= {
        f"collapse.{pair}.{name}{end}"
        for pair in ("white-box.or", "eyeglasses.or", "control.and")
        for name in QUANTITIES
        for end in ("", ".null")
    }
    whole |= {f"collapse.stop-sign.and.{name}.null" for name in QUANTITIES}
    pairs = ("white-box.or", "eyeglasses.or", "stop-sign.and", "control.and")
    assert set(numbers) == whole | {f"collapse.{pair}.{name}" for pair in pairs for name in ASR}
    both, phi = numbers["collapse.eyeglasses.or.asr_both"], numbers["collapse.eyeglasses.or.phi_text"]
    assert (both["seeds"], both["n"], both["interval"]) == (2, 192, "t over seeds")
    assert (phi["seeds"], phi["n"], phi["interval"]) == (1, 96, "none: one seed") and np.isnan(phi["low"])
    null = numbers["collapse.stop-sign.and.cti.null"]
    assert (null["value"], null["seeds"], null["interval"]) == (0.01, 1, "t over clusters")
    assert null["low"] < null["value"] < null["high"]


def test_the_papers_table_is_to_be_read(table):
    shown = paper_table(table).set_index("label")
    first = shown.loc["white box + mignneko, OR"]
    assert first["phi_image"].startswith("0.200 [-1.071, 1.471]") and first["phi_image, paper"] == "0.0060"
    assert first["phi_image, null"] == "0.050 [0.040, 0.060]" and first["verdict"] == TEXT
    assert shown.loc["eyeglasses + anonymous, OR", "phi_text"] == "0.800"
    assert shown.loc["stop sign + latte coffee, AND", "cti"] == FAILED
    assert shown.loc["white box + mignneko, AND, control encoder", "cti, paper"] == ""


def test_the_conclusion_is_computed(table):
    said = conclusion(table)
    assert said.startswith("Under the pre-trained text encoder 2 of 3 configurations are attacks. ")
    assert "the text trigger carries 0.34 to 0.39, the image trigger 0.03 to 0.07" in said
    assert "CTI lies between -0.100 and 0.000. The text carries more than the image in 2 of 2, at the paper's" in said
    assert said.endswith("edit instructions alone, AND: text 0.00, image 0.70.")


def test_the_conclusion_says_what_failed_and_where_the_image_leads():
    made = [attack(phi=(0.9, 0.1), rate=0.1), attack(part="control", decision=FAILED, rate=0.1)]
    said = conclusion(headline_table(rows(*made)))
    assert "more than the image in 0 of 1, at 10% (the paper: 5%)" in said
    assert said.endswith("1 of 1 attacks on that encoder failed.")
    nothing = conclusion(headline_table(rows(attack(decision=FAILED))))
    assert nothing == "Under the pre-trained text encoder 0 of 1 configurations are attacks."


def test_further_seeds_are_read_where_they_were_computed_in_full(tmp_path, models, monkeypatch):
    """Rows of other code or settings are left out, and what this store has trained is computed and written."""
    run = with_profile(tiny.short_run(tmp_path, models), {"grid": {"plain_seeds": 1, "pairs": list(PAIRS.items())[:2]}})
    monkeypatch.setattr(
        collapse_table, "attack_row", lambda run, attack: {"name": attack.name, "cti": 0.1, "decision": TEXT}
    )
    plain = headline_rows(run)
    assert set(plain["made"]) == {"here"} and not plain["name"].str.startswith("further").any()
    assert not (run.out / FURTHER).exists()
    late = [attack for attack in headline_attacks(run.profile) if attack.further]
    assert len(late) == 2  # OR and AND, of the second pair's second seed
    spec = "poisoned-editor", editor_spec(late[0].run(run), late[0].protocol)
    run.store.folder(*spec, lambda path: (path / "made").write_text("yes"))
    full = headline_rows(run)
    assert set(full["made"]) == {"here"} and full["name"].isin([late[0].name]).sum() == 1
    elsewhere = replace(run, store=Store(tmp_path / "other"))
    read = headline_rows(elsewhere)
    assert read.drop(columns="made").equals(full.drop(columns="made"))
    assert read.loc[read["name"] == late[0].name, "made"].tolist() == ["FULL=1"]
    other = with_profile(elsewhere, {"collapse": {"samples": run.profile.collapse.samples + 1}})
    assert not headline_rows(other)["name"].str.startswith("further").any()


def test_the_rows_are_those_of_every_headline_attack(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    monkeypatch.setattr(collapse_table, "attack_row", lambda run, attack: {"part": attack.part, "seed": attack.seed})
    found = headline_rows(run)
    assert len(found) == len(headline_attacks(run.profile))
    assert Counter(found["part"]) == {"pair": 2 * run.profile.grid.seeds, "control": 2 * run.profile.grid.control_seeds}
