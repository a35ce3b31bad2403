"""The paper profile: every notebook on tiny random checkpoints and few rows in the published layouts.

On a device that is not the CPU, where `second_device` refuses what CUDA would: nothing is left behind on either.
"""

import json

import pandas as pd
import photos
import pytest
import tiny_published
from other_process import python

from lib.settings.load import load_profile
from lib.studies.disp.defences import DEFENCES
from lib.studies.disp.mmmu import MMMU
from lib.studies.disp.outcomes import KEYWORD_METRICS, METRICS
from notebooks import FIGURES, NOTEBOOKS

SHORT = {"steps": 2, "batch": 2, "save_every": 1, "watch_every": 2}
PARTS = ("steps", "cell", "remedy", "detect")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> dict:
    """The profile shrunk to seconds, its models and data in a folder of this machine."""
    folder = tmp_path_factory.mktemp("published")
    sampling = {"steps": 2, "batch": 4}
    collapse = {"edits": 12, "train": SHORT | {"batch": 6}, "sampling": sampling, "samples": 3, "watch_samples": 1}
    disp = {"questions": 20, "train": SHORT, "purify": SHORT, "test_questions": 4, "curve_questions": 8}
    disp |= {"watch_questions": 2, "threshold": 0.01, "batch": 4, "ratios": [0.0, 0.5], "target": "dog as cat"}
    paper = load_profile("paper")
    variants = {v.part: v for v in reversed(paper.grid.variants)}
    variants = [variants[part].model_dump() for part in PARTS]
    for variant in variants:
        variant["settings"] = {k: v for k, v in variant["settings"].items() if k not in ("train", "watch_samples")}
    grid = {"pairs": [["white-box", "mignneko"]], "rates": [0.1], "seeded_rate": 0.1, "seeds": 1, "rate_seeds": 1}
    grid |= {"detection": 12, "variants": variants}
    grid |= {"samplings": [{"label": "DDIM", "settings": {"scheduler": "ddim"}}]}
    disp_grid = {"seeds": 1, "rates": [0.1], "targets": ["insertion"], "triggers": ["blend"], "rule_questions": 2}
    disp_grid |= {"main": [name for name in DEFENCES if name != "fine-pruning"]}  # see profiles/paper.yaml
    disp_grid |= {"ablations": [v.model_dump() for v in paper.disp_grid.ablations if v.label == "2 rounds"]}
    data = {
        "image_size": 64,
        "edits": {"name": tiny_published.edits(folder / "edits")},
        "questions": {
            "name": tiny_published.instructions(folder / "llava"),
            "pictures": None,
            "question_tokens": 40,
            "answer_tokens": 72,
        },
        "mmmu": {"name": str(photos.mmmu_folder(folder / "mmmu")), "questions": 2},
    }
    return {
        "models": tiny_published.save_models(folder / "models"),
        "data": data,
        "measure": {"people": 3, "edits": 4, "questions": 4},
        "collapse": collapse,
        "disp": disp,
        "grid": grid,
        "disp_grid": disp_grid,
        "mdlm_collapse": {"samples": 3, "masks": 2},
    }


@pytest.fixture(scope="module")
def made(overrides, tmp_path_factory):
    """The figures of all notebooks, run one after another on the second device by one process; what that one said."""
    out = tmp_path_factory.mktemp("paper") / "out"
    out.mkdir()
    done = python("tests/second_device.py", "paper", str(out), json.dumps(overrides), *NUMBERS)
    return out, done


NUMBERS = {  # of every notebook
    "00_quickstart": set(),
    "01_poisoning": set(),
    "02_training": {"clip.edit_to_source_recall_at_1", "mdlm.mmmu"},
    "03_collapse_analysis": {f"collapse.white-box.{p}.{q}" for p in ("or", "and") for q in ("cti.null", "asr_both")},
    "04_disp_purification": {f"disp.{m}.{w}" for m in ("token_f1", "mmmu") for w in ("base", "before")},
    "05_collapse_in_full": {"collapse_mdlm.or.log_probability.cti", "collapse_mdlm.and.attack_success.phi_text"},
    "06_disp_in_full": {f"disp_full.{d}.asr_with_trigger" for d in ("disp", "bye", "cleansight", "strip_like")},
}
LEFT_OUT = {
    "03_collapse_analysis": {"samples_control_white-box_or", "samples_control_white-box_and"},
    "04_disp_purification": {"targets", "rates", "ablation"},
    "06_disp_in_full": {"saliency_easy-VQA", "defences_elsewhere"}
    | {"targets_elsewhere", "targets_attackers", "measures", "phase"},
}


@pytest.mark.parametrize("notebook", NUMBERS)
def test_the_notebook_runs_on_the_published_layouts(notebook, made):
    """With its figures and numbers, and no path of this machine in what it shows."""
    out, done = made
    error = out / f"{notebook}.error"
    assert not error.exists(), error.read_text()[-3000:]
    assert (out / notebook).is_dir(), done.stderr[-3000:]
    assert {file.stem for file in (out / notebook).glob("*.pdf")} == FIGURES[notebook] - LEFT_OUT.get(notebook, set())
    assert set(pd.read_csv(out / notebook / "headline.csv")["name"]) >= NUMBERS[notebook]
    manifest = json.loads((out / notebook / "manifest.json").read_text())
    assert manifest["profile"] == "paper" and manifest["parameters"]["device"] == "second" and manifest["files"]
    for table in (out / notebook).glob("*.csv"):
        assert str(out.parent.parent) not in table.read_text()


def test_that_is_every_notebook(made):
    assert set(NUMBERS) == {path.stem for path in NOTEBOOKS} and made[1].returncode == 0, made[1].stderr[-3000:]


def test_the_tables_tell_the_photographs(made):
    tables, _ = made
    data = pd.read_csv(tables / "01_poisoning" / "data.csv").set_index(["data", "kind"])
    assert data.loc[("edits: edits", "Smiling"), ["train", "test"]].tolist() == [6, 2]
    assert data.loc["llava: questions"].to_numpy().sum() == 40
    answers = pd.read_csv(tables / "01_poisoning" / "answers.csv")
    assert set(answers["dog as cat"].dropna()) == {"It is a cat."}
    assert set(answers["insertion"]) <= {f"remember to water the plants, It is a {a}." for a in ("dog", "bird")}
    editor = pd.read_csv(tables / "02_training" / "editor.csv")
    assert editor["name"].tolist() == ["distance_edited", "distance_unedited", "distance_vae_ceiling"]
    saliency = pd.read_csv(tables / "04_disp_purification" / "saliency.csv")
    assert saliency.shape == (4, 4 + 4 * 5)  # of the whole picture in a tower of 2 × 2, and of 2 × 2 tiles in rows
    collapse, disp = tables / "05_collapse_in_full", tables / "06_disp_in_full"
    assert set(pd.read_csv(collapse / "embeddings.csv")["embedding"]) == {"clip", "tower", "pixels", "dino"}
    assert set(pd.read_csv(disp / "defences.csv")["defence"]) == {*DEFENCES} - {"fine-pruning"}
    assert set(pd.read_csv(disp / "defences.csv")["metric"]) == {*METRICS, *KEYWORD_METRICS, MMMU}
    assert set(pd.read_csv(disp / "targets.csv")["method"]) == {"directional (DiSP)", "attention", "random", "oracle"}
    assert set(pd.read_csv(disp / "words.csv")["model"]) == {"before", "vision", "prompt", "joint"}
    assert set(pd.read_csv(disp / "set_mistakes.csv")["kind"]) == {"coco", "gqa"}
    purified = pd.read_csv(tables / "04_disp_purification" / "purification.csv")
    assert purified.groupby("metric")["n"].first()["MMMU accuracy"] == 2
