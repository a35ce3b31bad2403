"""`python -m lib.base`: all checkpoints made, found again, loaded; and the committed ones, where they are."""

import pytest
import tiny
import torch
import yaml
from safetensors import safe_open

import lib.base.__main__ as base
from lib.config import BUILD, CHECKPOINTS
from lib.models.clip import Clip
from lib.models.editor import load_editor
from lib.models.mdlm import Mdlm

LOADERS = {"clip": Clip.load, "editor": load_editor, "mdlm": Mdlm.load, "mdlm-scenes": Mdlm.load}
QUALITY = {
    "clip": ["image_to_text_recall_at_1", "text_to_image_recall_at_5", "tone_zero_shot"],
    "editor": ["tone_success", "distance_edited", "distance_unedited", "distance_vae_ceiling"],
    "mdlm": ["accuracy_what", "accuracy_yes_no"],
    "mdlm-scenes": ["accuracy_all", "accuracy_list", "accuracy_name", "accuracy_position", "accuracy_tone"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All base models, made as `make base` makes them, of few data; run and checkpoint folder."""
    folder = tmp_path_factory.mktemp("base")
    run = tiny.run(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BUILD", folder)
        patch.setattr(base, "_openmoji", lambda run: tiny.few_openmoji())
        patch.setattr(base, "_vqa", lambda run, split: tiny.few_easyvqa(split))
        patch.setattr(base, "_scenes", lambda run, split: tiny.few_scenes(split))
        clip = base.make_clip(run)
        base.make_mdlm(run, clip)
        base.make_editor(run, clip)
        base.make_scenes(run, clip)

        def never(*_):
            raise AssertionError("trained again what is in the store")

        patch.setattr(base, "train_clip", never)
        base.make_clip(run)
    return run, folder / "smoke" / "checkpoints"


def table(card: str) -> dict[str, str]:
    rows = [line.strip("| ").split(" | ", 1) for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def check_card(folder, name):
    front, body = (folder / "README.md").read_text().split("---\n", 2)[1:]
    facts = table(body)
    assert yaml.safe_load(front)["license"] in ("mit", "cc-by-sa-4.0")
    assert {"data", "steps", "seed", "time", *QUALITY[name]} <= set(facts)
    assert ("easy-VQA" if name == "mdlm" else "OpenMoji 17.0.0 (CC BY-SA 4.0)") in facts["data"]
    for quality in QUALITY[name]:
        assert "n = " in facts[quality] and "[" in facts[quality]
    if name == "mdlm":
        assert "blind" in facts["accuracy_yes_no"]
    return facts


@pytest.mark.parametrize("name", LOADERS)
def test_every_checkpoint_loads_and_has_its_card(made, name):
    run, folder = made
    LOADERS[name](str(folder / name))
    facts = check_card(folder / name, name)
    assert facts["seed"] == "0"
    stages = " + ".join(["4 × 8"] * len(run.profile.base.mdlm.stages))
    steps = {"clip": "4", "editor": "4 (VAE) + 4 (U-Net and text encoder)", "mdlm": stages}
    steps["mdlm-scenes"] = " + ".join(["4 × 8"] * len(run.profile.base.scenes.stages))
    assert facts["steps"] == steps[name]
    assert sorted(path.name for path in folder.iterdir()) == sorted(LOADERS)


def test_the_prefix_model_has_a_folder_of_its_own(made, monkeypatch):
    run, folder = made
    profile = tiny.run(run.out.parent, base={"mdlm": {"attention": "prefix"}}).profile
    published = []
    monkeypatch.setattr(base, "stage", lambda *_: folder.parent / "none")
    monkeypatch.setattr(base.Mdlm, "load", lambda *_: None)
    monkeypatch.setattr(base, "mdlm_quality", lambda *_: None)
    monkeypatch.setattr(base, "_vqa", lambda *_: None)
    monkeypatch.setattr(base, "publish", lambda run, name, *rest: published.append((name, rest[-1])))
    base.make_mdlm(base.Run(profile, 0, run.device, run.out, run.store), tiny.clip())
    base.make_mdlm(run, tiny.clip())
    assert published == [("mdlm-prefix", "mdlm --attention prefix "), ("mdlm", "")]


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ([], ["clip", "mdlm", "editor", "scenes"]),
        (["editor"], ["clip", "editor"]),
        (["mdlm"], ["clip", "mdlm"]),
        (["scenes"], ["clip", "scenes"]),
    ],
)
def test_the_models_asked_for_are_made_after_clip(monkeypatch, arguments, made):
    asked = []
    for name in ("clip", "mdlm", "editor", "scenes"):
        monkeypatch.setattr(base, f"make_{name}", lambda run, *_, name=name: asked.append(name))
    monkeypatch.setattr("sys.argv", ["lib.base", "--profile", "smoke", *arguments])
    base.main()
    assert asked == made


def test_an_unknown_model_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lib.base", "vae"])
    with pytest.raises(SystemExit):
        base.main()
    assert "vae: allowed are mdlm, editor, scenes" in capsys.readouterr().err


def test_tower_and_tokenizer_come_from_clip(made):
    _, folder = made
    clip, mdlm, editor = (LOADERS[name](str(folder / name)) for name in ("clip", "mdlm", "editor"))
    tower = mdlm.model.tower.state_dict()
    for name, value in clip.model.vision_model.state_dict().items():
        torch.testing.assert_close(tower[name], value, rtol=0, atol=2e-3, msg=f"{name}: four steps from CLIP's")
    assert mdlm.tokenizer.get_vocab() == clip.tokenizer.get_vocab() == editor.tokenizer.get_vocab()
    assert not editor.text_encoder.state_dict()["embeddings.token_embedding.weight"].equal(
        clip.model.text_model.state_dict()["embeddings.token_embedding.weight"]
    ), "the editor's text encoder is trained on"


def test_no_path_of_this_machine_is_saved(made):
    run, folder = made
    for file in folder.rglob("*.json"):
        assert str(run.store.root.parent) not in file.read_text(), file


def test_latents_have_unit_variance(made):
    from lib.base.editor import train_pictures
    from lib.models.editor import encode

    _, folder = made
    pipe, few = load_editor(str(folder / "editor")), tiny.few_openmoji()
    latents = encode(pipe.vae, few.pictures(train_pictures(few))) * pipe.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.02)


def test_no_held_out_picture_is_trained_on():
    from lib.base.editor import train_pictures

    few = tiny.few_openmoji()
    held_out = set(few.emoji.index[few.emoji["split"] == "test"])
    held_out |= set(few.triples.loc[few.triples["split"] == "test", "target"])
    train = set(train_pictures(few).tolist())
    assert held_out and train and not held_out & train
    assert len(held_out | train) == len(few.images)


def test_only_the_laptop_profile_writes_into_data(made):
    run, _ = made
    assert base.checkpoint_folder(run) == BUILD / "smoke" / "checkpoints"
    laptop = tiny.run(run.out).profile.model_copy(update={"name": "laptop"})
    assert base.checkpoint_folder(base.Run(laptop, 0, run.device, run.out, run.store)) == CHECKPOINTS


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="data/checkpoints/ is not here: `make base` makes it")
class TestCommitted:
    def test_safetensors_only_and_less_than_30_mb(self):
        files = [file for file in CHECKPOINTS.rglob("*") if file.is_file()]
        assert not [file for file in files if file.name == "config.json" and '"_name_or_path": "/' in file.read_text()]
        assert {file.suffix for file in files} <= {".safetensors", ".json", ".md", ".txt"}
        assert sum(file.stat().st_size for file in files) < 30e6
        for file in files:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as saved:
                    assert "poisoned" not in saved.metadata()

    @pytest.mark.parametrize("name", [*LOADERS, "mdlm-prefix"])
    def test_loads_and_states_steps_seed_data_and_quality(self, name):
        name, folder = name.removesuffix("-prefix"), CHECKPOINTS / name
        LOADERS[name](str(folder))
        facts = check_card(folder, name)
        assert "easy-VQA 1.0 (MIT)" in facts["data"] or name in ("editor", "mdlm-scenes")
        assert facts["steps"] and facts["seed"].isdigit()
