import json

import pandas as pd
import pytest
import tiny
import torch

from lib import collapse as study
from lib import grid
from lib.attribution import hierarchical_mean
from lib.collapse import collapse
from lib.poisoning import COALITIONS
from lib.profile import Grid
from lib.studies import attacks

VARIANTS = [
    {"part": "steps", "label": "AND", "protocol": "and", "settings": {"watch_samples": 2}},
    {"part": "size", "label": "3/8", "protocol": "and", "settings": {"trigger_size": 0.375}},
    {"part": "mask", "label": "three", "protocol": "and", "settings": {}},
    {"part": "detect", "label": "top hat", "protocol": "and", "settings": {"rate": 0.5}},
]
SETTINGS = {"pairs": [["white-box", "mignneko"]], "rates": [0.1], "seeds": 2, "seeded_rate": 0.1}
SETTINGS |= {"guidance": [1.5, 3], "detection": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("grid")
    short = tiny.short_run(folder, models)
    section = Grid.model_validate_json(json.dumps(SETTINGS | {"variants": VARIANTS}))
    profile = short.profile.model_copy(update={"grid": section})
    return type(short)(profile, short.seed, short.device, short.out, short.store)


def test_a_row_holds_what_the_attack_gives(run):
    attack = attacks(run.profile)[1]
    assert (attack.part, attack.protocol, attack.seed) == ("grid", "or", 1)
    row = grid.attack_row(run, attack)
    result = collapse(attack.run(run), "or")
    assert row["seed"] == 1 and row["rate"] == 0.1 and row["steps"] == 2 and row["n"] == 3
    for k, name in enumerate(COALITIONS):
        assert row[f"asr_{name}"] == pytest.approx(float(result.success[:, k].float().mean()))
        assert row[f"v_{name}"] == pytest.approx(float(result.v[:, k].mean()), abs=1e-6)
    assert row["phi_text"] == pytest.approx(float(result.phi[:, 1].mean()), abs=1e-6)
    assert row["cti"] == pytest.approx(float(result.cti.mean()), abs=1e-6)
    rms = (result.edited[:, 0] - result.clean).square().mean((1, 2, 3)).sqrt()
    assert row["fidelity"] == pytest.approx(float(rms.mean()), abs=1e-6)
    for name in ("asr_both", "v_none", "phi_image", "cti", "fidelity", "gain", "image_share"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] or name == "image_share"
    assert row["gain"] == pytest.approx(float(result.phi.sum() / result.possible.sum()), rel=1e-4, abs=1e-6)


def test_the_table_holds_the_parts_asked_for(run):
    table = grid.attack_table(run, ("grid",))
    assert table[["protocol", "seed"]].to_numpy().tolist() == [["or", 0], ["or", 1], ["and", 0], ["and", 1]]
    assert grid.attack_table(run, ("size",))["trigger_size"].tolist() == [0.375]
    pixels = grid.attack_table(run, ("grid",), "pixels")
    assert set(pixels["embedding"]) == {"pixels"} and (pixels["v_both"] != table["v_both"]).all()
    assert pixels["asr_both"].equals(table["asr_both"])
    agreement = grid.embedding_agreement(pd.concat([table, pixels])).set_index("embedding")
    assert agreement.loc["clip", "agree"] == 1 and set(agreement["n"]) == {4}
    same = (pixels["decision"] == table["decision"]).mean()
    assert agreement.loc["pixels", "agree"] == same


def test_seeds_are_drawn_first_in_the_seeds_table(run):
    table = grid.seeds_table(run).set_index("protocol")
    assert list(table.index) == ["or", "and"] and set(table["seeds"]) == {2} and set(table["n"]) == {6}
    groups = [collapse(attack.run(run), "and").cti for attack in attacks(run.profile)[2:4]]
    mean, low, high = hierarchical_mean(groups, seed=run.seed)
    assert table.loc["and", ["cti", "cti_low", "cti_high"]].tolist() == pytest.approx([mean, low, high])
    assert table["paper_cti"].tolist() == [-0.0089, -0.0086]


def test_guidance_changes_the_sampling_alone(run, monkeypatch):
    table = grid.guidance_table(run)
    assert table["text_guidance"].tolist() == [1.5, 3] and set(table["size"]) == {0.375}
    own = next(attack for attack in attacks(run.profile) if attack.part == "size")
    first = grid.guided(run, own)
    assert len(first) == 2 and not torch.equal(first[0].edited, first[1].edited)
    assert table["phi_image"].tolist() == pytest.approx([float(r.phi[:, 0].mean()) for r in first])

    def refuse(*_, **__):
        raise AssertionError("sampled or trained again")

    monkeypatch.setattr(study, "edits_under_coalitions", refuse)
    monkeypatch.setattr(study, "poisoned_editor", refuse)
    assert grid.guidance_table(run).equals(table)


def test_dynamics_are_the_shapley_values_of_the_watched_means(run):
    table = grid.dynamics_table(run)
    assert table["step"].tolist() == [1, 2] and set(table["label"]) == {"AND"} and set(table["n"]) == {2}
    none, image, text, both = (table[f"v_{name}"] for name in COALITIONS)
    assert table["phi_image"].tolist() == pytest.approx(((image - none + both - text) / 2).tolist())
    assert table["cti"].tolist() == pytest.approx((both - image - text + none).tolist())


def test_labels_name_the_attack_and_carry_the_papers_values_at_its_rate():
    rows = [("white-box", "mignneko", "and", 0.05, 3), ("white-box", "mignneko", "and", 0.1, 0)]
    rows += [("checker", "mignneko", "or", 0.05, 0)]
    table = pd.DataFrame(rows, columns=["image_trigger", "text_trigger", "protocol", "rate", "seed"])
    labelled = grid.grid_labels(table)
    assert labelled["label"][0] == "white-box + mignneko, AND, 5 %, seed 3"
    assert labelled["paper_phi_text"].iloc[0] == 0.9532 and labelled["paper_phi_text"].iloc[1:].isna().all()


def test_what_was_prepared_is_found_in_the_store(run, monkeypatch):
    for attack in attacks(run.profile):
        if attack.part in ("mask", "detect"):
            grid.prepare(run, attack)

    def refuse(*_, **__):
        raise AssertionError("measured again")

    for module in ("lib.modalities.poisoned_masked_editor", "lib.detection.poisoned_editor"):
        monkeypatch.setattr(module, refuse)
    table = grid.modalities_table(run)
    assert len(table) == 8 + 8 + 7 + 1 and set(table["protocol"]) == {"and"}
    scores, places = grid.detection_tables(run)
    assert set(scores["n"]) == {12} and set(scores["n_poisoned"]) < set(range(1, 12)) and len(scores) == 15
    assert places["part"].tolist() == ["word", "patch"] and set(places["target"]) == {"top hat"}
