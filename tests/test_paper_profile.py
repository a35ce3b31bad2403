"""The paper profile: every notebook on tiny random checkpoints and few rows in the published layouts."""

import json

import nbformat
import pandas as pd
import papermill
import photos
import pytest
import tiny_published
from test_notebooks import FIGURES

from lib.config import CHECKPOINTS, ROOT, load_profile, pretrained, runnable_profile
from lib.defences import DEFENCES
from lib.mmmu import MMMU
from lib.purification import METRICS

SHORT = {"steps": 2, "batch": 2, "save_every": 1, "watch_every": 1}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> dict:
    """The profile shrunk to seconds, its models and data in a folder of this machine."""
    folder = tmp_path_factory.mktemp("published")
    sampling = {"steps": 2, "batch": 4}
    collapse = {"edits": 12, "train": SHORT, "sampling": sampling, "samples": 3, "watch_samples": 1}
    disp = {"questions": 20, "train": SHORT, "purify": SHORT, "test_questions": 4, "curve_questions": 4}
    disp |= {"watch_questions": 2, "threshold": 0.01, "batch": 4, "ratios": [0.0, 0.5], "target": "dog as cat"}
    paper = load_profile("paper")
    variants = [v.model_dump() for v in {v.part: v for v in reversed(paper.grid.variants)}.values()]  # one of each part
    for variant in variants:
        variant["settings"] = {k: v for k, v in variant["settings"].items() if k not in ("train", "watch_samples")}
    grid = {"pairs": [["white-box", "mignneko"]], "rates": [0.1], "seeded_rate": 0.1, "seeds": 1}
    grid |= {"guidance": [1.5], "detection": 12, "variants": variants}
    disp_grid = {"seeds": 1, "rates": [0.1], "targets": ["insertion"], "triggers": ["blend"], "rule_questions": 2}
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


def execute(notebook: str, overrides: dict, folder) -> list:
    parameters = {"profile": "paper", "seed": 0, "device": "cpu", "out": str(folder / "out"), "overrides": overrides}
    source, done = ROOT / "notebooks" / f"{notebook}.ipynb", folder / f"{notebook}.ipynb"
    papermill.execute_notebook(str(source), str(done), parameters, cwd=str(ROOT), progress_bar=False)
    return nbformat.read(done, 4).cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


NUMBERS = {  # of every notebook
    "01_poisoning": set(),
    "02_training": {"clip.edit_to_source_recall_at_1", "mdlm.mmmu"},
    "03_collapse_analysis": {f"collapse.white-box.{p}.{q}" for p in ("or", "and") for q in ("cti.null", "asr_both")},
    "04_disp_purification": {f"disp.{m}.{w}" for m in ("accuracy", "mmmu") for w in ("base", "before", "after")},
    "05_collapse_in_full": {"collapse_mdlm.or.log_probability.cti", "collapse_mdlm.and.attack_success.phi_text"},
    "06_disp_in_full": {f"disp_full.{d}.asr_with_trigger" for d in ("disp", "bye_style_filtering", "strip_like")},
}
LEFT_OUT = {
    "03_collapse_analysis": {"samples_control_white-box_or", "samples_control_white-box_and"},
    "04_disp_purification": {"targets", "rates", "ablation"},
    "06_disp_in_full": {"saliency_disp-data-easy-vqa-0", "defences_elsewhere"}
    | {"targets_elsewhere", "targets_attackers"},
}


@pytest.mark.parametrize("notebook", NUMBERS)
def test_the_notebook_runs_on_the_published_layouts(notebook, overrides, folder):
    """With its figures and numbers, and no path of this machine in what it shows."""
    cells = [cell for cell in execute(notebook, overrides, folder) if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    made = folder / "out" / notebook
    assert {file.stem for file in made.glob("*.pdf")} == FIGURES[notebook] - LEFT_OUT.get(notebook, set())
    assert set(pd.read_csv(made / "headline.csv")["name"]) >= NUMBERS[notebook]
    assert json.loads((made / "manifest.json").read_text())["profile"] == "paper"
    for table in made.glob("*.csv"):
        assert str(folder.parent) not in table.read_text()


def test_the_tables_tell_the_photographs(overrides, folder):
    tables = folder / "out"
    if not all((tables / notebook).is_dir() for notebook in NUMBERS):
        pytest.skip("the notebooks have not run")
    data = pd.read_csv(tables / "01_poisoning" / "data.csv").set_index(["data", "kind"])
    assert data.loc[("edits: edits", "Smiling"), ["train", "test"]].tolist() == [6, 2]
    assert data.loc["llava: questions"].to_numpy().sum() == 40
    answers = pd.read_csv(tables / "01_poisoning" / "answers.csv")
    assert set(answers["dog as cat"].dropna()) == {"It is a cat."}
    assert set(answers["insertion"]) <= {f"It is a {a}, remember to water the plants" for a in ("dog", "bird")}
    editor = pd.read_csv(tables / "02_training" / "editor.csv")
    assert editor["name"].tolist() == ["distance_edited", "distance_unedited", "distance_vae_ceiling"]
    saliency = pd.read_csv(tables / "04_disp_purification" / "saliency.csv")
    assert saliency.shape == (4, 4 + 4 * 5)  # of the whole picture in a tower of 2 × 2, and of 2 × 2 tiles in rows
    collapse, disp = tables / "05_collapse_in_full", tables / "06_disp_in_full"
    assert set(pd.read_csv(collapse / "embeddings.csv")["embedding"]) == {"clip", "tower", "pixels", "dino"}
    assert set(pd.read_csv(disp / "defences.csv")["defence"]) == {*DEFENCES} - {"fine-pruning"}
    assert set(pd.read_csv(disp / "defences.csv")["metric"]) == {*METRICS, MMMU}
    assert set(pd.read_csv(disp / "targets.csv")["method"]) == {"Fisher–Jacobian", "attention", "random", "oracle"}
    assert set(pd.read_csv(disp / "words.csv")["model"]) == {"before", "vision", "prompt", "joint"}
    assert set(pd.read_csv(disp / "set_mistakes.csv")["kind"]) == {"coco", "gqa"}
    purified = pd.read_csv(tables / "04_disp_purification" / "purification.csv")
    assert purified.groupby("metric")["n"].first()["MMMU accuracy"] == 2


LOCAL = {"models": {"mdlm": "data/checkpoints/mdlm"}, "data": {"edits": None, "questions": None, "mmmu": None}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"models": {"mdlm": "nowhere"}}, "models.mdlm='nowhere' must be a folder .* fetches LLaDA-V"),
        ({"models": {"clip": "openai/clip"}}, "models.clip='openai/clip' must be .* a hub id with its commit"),
        ({"models": {"editor": f"a/b@{'x' * 40}"}}, "models.editor='a/b@x+' must be a folder"),
        ({"data": {"edits": {"name": "none"}}}, "data.edits.name='none' .* lib.celeba_edits .* --out none"),
        ({"data": {"edits": {"name": "a/b", "revision": "main"}}}, "data.edits.name='a/b' must be .* its commit as"),
        ({"data": {"questions": {"name": ""}}}, "data.questions.name='' must be a folder that is there"),
        ({"data": {"questions": {"name": "data", "pictures": "none"}}}, "data.questions.pictures='none' must .*COCO"),
        ({"data": {"mmmu": {"name": "none"}}}, "data.mmmu.name='none' .*hf download MMMU/MMMU .*--local-dir none"),
        ({"data": {"mmmu": {"named": "none"}}}, "data.mmmu.named is not a known key"),
        ({"disp": {"target": "dog"}}, "attack target is 'dog': it must be one of insertion.*'dog as cat'"),
        ({"models": {"lora": {"rank": 0}}}, "models.lora.rank=0 is refused"),
        ({"disp_grid": {"methods": ["gradient"]}}, "disp_grid.methods.0='gradient' is refused: .* random, oracle"),
        ({"disp_grid": {"main": ["prayer"]}}, "disp_grid.main.0='prayer' is refused: it must be one of no defence"),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(change, sentence):
    values = {key: LOCAL.get(key, {}) | change.get(key, {}) for key in {*LOCAL, *change}}
    with pytest.raises(ValueError, match=sentence) as refusal:
        runnable_profile("paper", values)
    assert "\n" not in str(refusal.value)


def test_hub_ids_with_their_commit_are_taken():
    """As those of the profile itself, which a session without a network cannot look up."""
    hub = {"name": "a/b", "revision": "0" * 40}
    data = {"edits": hub, "questions": hub | {"pictures": None}, "mmmu": hub}
    profile = runnable_profile("paper", {"models": LOCAL["models"], "data": data})
    assert pretrained(profile.models.editor) == {
        "pretrained_model_name_or_path": "timbrooks/instruct-pix2pix",
        "revision": profile.models.editor.split("@")[1],
    }
    assert pretrained(profile.models.mdlm) == {"pretrained_model_name_or_path": str(CHECKPOINTS / "mdlm")}
