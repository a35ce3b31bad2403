import json
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch

from lib.metrics.intervals import over_clusters
from lib.metrics.tma import interaction, shapley
from lib.poisoning.plans import COALITIONS
from lib.settings.profile import Grid
from lib.studies.cases import attacks
from lib.studies.collapse import editor as study
from lib.studies.collapse import rows
from lib.studies.collapse import tables as grid
from lib.studies.collapse.editor import collapse

VARIANTS = [
    {"part": "steps", "label": "AND", "protocol": "and", "settings": {"watch_samples": 2, "train": {"watch_every": 1}}},
    {"part": "cell", "label": "3/8", "protocol": "and", "settings": {"trigger_size": 0.375}, "model": "control"},
    {"part": "detect", "label": "sailing boat", "protocol": "and", "settings": {"rate": 0.5}},
]
SETTINGS = {"pairs": [["white-box", "mignneko"]], "rates": [0.1, 0.2], "seeds": 2}
SETTINGS |= {"plain_seeds": 2, "rate_seeds": 2, "seeded_rate": 0.1}
SETTINGS |= {"samplings": [{"label": "more guidance", "settings": {"text_guidance": 5.0}}]}
SETTINGS |= {"control_seeds": 1, "detection": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("grid")
    short = tiny.short_run(folder, models)
    section = Grid.model_validate_json(json.dumps(SETTINGS | {"variants": VARIANTS}))
    return replace(short, profile=short.profile.model_copy(update={"grid": section}))


def succeeding(run, protocol, **given):
    """What the attack gives where it is one: its success with both triggers, and never without."""
    result = collapse(run, protocol, **given)
    success = torch.zeros_like(result.success)
    success[:, 3] = True
    return replace(result, success=success)


@pytest.fixture
def successful(monkeypatch):
    """All attacks succeed: the random models' own do not."""
    monkeypatch.setattr(rows, "collapse", succeeding)


@pytest.mark.usefixtures("successful")
def test_a_row_holds_what_the_attack_gives(run):
    attack = attacks(run.profile)[2]
    assert (attack.part, attack.protocol, attack.seed) == ("pair", "or", 1)
    row = grid.attack_row(run, attack)
    result = collapse(attack.run(run), "or")
    assert row["seed"] == 1 and row["rate"] == 0.1 and row["steps"] == 2 and row["n"] == 3 and row["is_attack"]
    assert [row[f"asr_{name}"] for name in COALITIONS] == [0, 0, 0, 1]
    gain = float(result.possible.mean())
    for prefix, game in {"": result.v, "null_": result.null, "added_": (result.v - result.null) / gain}.items():
        phi = shapley(game).mean(0).tolist()
        assert [row[f"{prefix}phi_image"], row[f"{prefix}phi_text"]] == pytest.approx(phi, abs=1e-6)
        assert row[f"{prefix}cti"] == pytest.approx(float(interaction(game).mean()), abs=1e-6)
    rms = (result.edited[:, 0] - result.clean).square().mean((1, 2, 3)).sqrt()
    assert row["fidelity"] == pytest.approx(float(rms.mean()), abs=1e-6)
    assert row["null_fidelity"] == pytest.approx(float(result.null_fidelity.mean()), abs=1e-6) != row["fidelity"]
    own = over_clusters(result.cti, result.families)
    assert [row["cti_low"], row["cti_high"]] == pytest.approx([own["low"], own["high"]])
    added = shapley(result.added)
    assert row["gain"] == pytest.approx(float(added.sum() / result.possible.sum()), rel=1e-4, abs=1e-6)
    assert row["image_share"] == pytest.approx(float(added[:, 0].sum() / added.sum()), rel=1e-3)


def test_of_a_failed_attack_no_attribution_is_read(run):
    row = grid.attack_row(run, attacks(run.profile)[0])
    assert row["is_attack"] is False and row["decision"] == "failed attack"
    for name in ("phi_image", "phi_text", "cti", "added_phi_image", "added_phi_text", "added_cti"):
        assert [row[name + end] for end in ("", "_low", "_high")] == [None] * 3
    assert row["image_share"] is None and row["gain"] is not None
    assert all(row[name] is not None for name in ("asr_both", "null_phi_image", "null_cti", "fidelity"))


@pytest.mark.usefixtures("successful")
def test_samples_of_one_identity_are_one_cluster(run, monkeypatch):
    attack = attacks(run.profile)[0]
    apart = grid.attack_row(run, attack)

    def together(run, protocol, **given):
        result = succeeding(run, protocol, **given)
        return replace(result, triples=result.triples.assign(family=[0, 0, 1]))

    monkeypatch.setattr(rows, "collapse", together)
    row = grid.attack_row(run, attack)
    own = over_clusters(collapse(attack.run(run), "or").phi[:, 0], [0, 0, 1])
    assert [row[f"phi_image{end}"] for end in ("_low", "_high")] == pytest.approx([own["low"], own["high"]])
    assert row["phi_image"] == apart["phi_image"] and row["phi_image_low"] != apart["phi_image_low"]


@pytest.mark.usefixtures("successful")
def test_the_table_holds_the_parts_asked_for(run):
    table = grid.attack_table(run, ("pair", "grid"))
    pair, rest = [["or", 0], ["and", 0], ["or", 1], ["and", 1]], [["or", 0], ["or", 1], ["and", 0], ["and", 1]]
    assert table[["protocol", "seed"]].to_numpy().tolist() == pair + rest
    assert table["rate"].tolist() == [0.1] * 4 + [0.2] * 4
    assert grid.attack_table(run, ("cell",))["trigger_size"].tolist() == [0.375]
    pixels = grid.attack_table(run, ("pair", "grid"), "pixels")
    assert set(pixels["embedding"]) == {"pixels"} and (pixels["phi_text"] != table["phi_text"]).all()
    assert pixels["asr_both"].equals(table["asr_both"])
    agreement = grid.embedding_agreement(pd.concat([table, pixels])).set_index("embedding")
    assert agreement.loc["clip", "agree"] == 1 and set(agreement["n"]) == {8}
    same = (pixels["decision"] == table["decision"]).mean()
    assert agreement.loc["pixels", "agree"] == same


def test_embeddings_agree_on_attacks_that_did_not_fail():
    rows = [("a", "clip", True, "collapsed onto text", 0.0), ("b", "clip", True, "shared", 0.5)]
    rows += [("c", "clip", True, "no backdoor", 0.2), ("d", "clip", False, "failed attack", None)]
    rows += [("a", "pixels", True, "shared", 0.3), ("b", "pixels", True, "shared", 0.1)]
    rows += [("c", "pixels", True, "no backdoor", 0.9), ("d", "pixels", False, "failed attack", None)]
    table = pd.DataFrame(rows, columns=["label", "embedding", "is_attack", "decision", "image_share"])
    found = grid.embedding_agreement(table.assign(part="grid", protocol="or", seed=0)).set_index("embedding")
    assert found.loc["pixels", ["agree", "rank", "n", "with_backdoor"]].tolist() == pytest.approx([2 / 3, -1, 3, 2])
    none = grid.embedding_agreement(table[table["label"] == "d"].assign(part="grid", protocol="or", seed=0))
    assert none.empty and "agree" in none


@pytest.mark.usefixtures("successful")
def test_another_sampling_trains_nothing_anew(run, monkeypatch):
    table = grid.sampling_table(run)
    assert table["label"].tolist() == ["as trained and shown", "more guidance"] * 2
    own = run.profile.collapse.sampling.text_guidance
    assert table["text_guidance"].tolist() == [own, 5.0] * 2 and table["protocol"].tolist() == ["or"] * 2 + ["and"] * 2
    assert table["phi_image"].iloc[0] != table["phi_image"].iloc[1]
    plain = grid.attack_row(run, attacks(run.profile)[0])
    assert {name: table.iloc[0][name] for name in ("phi_image", "cti", "seed")} == {
        name: plain[name] for name in ("phi_image", "cti", "seed")
    }

    def refuse(*_, **__):
        raise AssertionError("sampled or trained again")

    monkeypatch.setattr(study, "edits_under_coalitions", refuse)
    monkeypatch.setattr(study, "poisoned_editor", refuse)
    assert grid.sampling_table(run).equals(table)


def test_dynamics_are_the_shapley_values_of_the_watched_means(run):
    table = grid.dynamics_table(run)
    assert table["step"].tolist() == [1, 2] and set(table["label"]) == {"AND"} and set(table["n"]) == {2}
    assert set(table["seed"]) == {0}
    none, image, text, both = (table[f"v_{name}"] for name in COALITIONS)
    assert table["phi_image"].tolist() == pytest.approx(((image - none + both - text) / 2).tolist())
    assert table["cti"].tolist() == pytest.approx((both - image - text + none).tolist())


def test_what_was_prepared_is_found_in_the_store(run, monkeypatch):
    grid.prepare(run, next(attack for attack in attacks(run.profile) if attack.part == "detect"))

    def refuse(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr("lib.studies.collapse.detection.poisoned_editor", refuse)
    scores, places = grid.detection_tables(run)
    assert set(scores["n"]) == {12} and set(scores["n_poisoned"]) < set(range(1, 12)) and len(scores) == 15
    assert places["part"].tolist() == ["word", "patch"] and set(places["target"]) == {"sailing boat"}
