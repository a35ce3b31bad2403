"""`lib.studies.base_models`: all checkpoints made, found again, loaded; what measures them; and the committed ones."""

from functools import wraps
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch
import yaml
from safetensors import safe_open
from transformers import BertModel

import lib.studies.base_models.__main__ as base
from lib.data import EasyVqa, FaceQuestions, Faces
from lib.data.face_parts import ATTRIBUTES, EVERYTHING
from lib.data.face_words import description
from lib.data.faces import draw_faces
from lib.models.clip import Clip
from lib.models.editor import encode, load_editor
from lib.models.mdlm import Mdlm
from lib.settings.load import load_profile
from lib.settings.paths import BUILD, CHECKPOINTS
from lib.studies.base_models import quality
from lib.studies.base_models.clip import train_clip
from lib.studies.base_models.editor import UNLIKE, train_edits, train_vae, unlike_faces
from lib.studies.base_models.mdlm import fresh_mdlm, train_mdlm
from lib.tasks import edits as editing

LOADERS = {
    "clip": Clip.load,
    "editor": load_editor,
    "control": load_editor,
    "mdlm": Mdlm.load,
    "mdlm-vqa": Mdlm.load,
}
EDITS = [f"distance_{name}" for name in ("edited", "unedited", "vae_ceiling")]
EDITS += ["attribute_reached", "others_kept", "all_others_kept"]
QUALITY = {
    "clip": ["recall_at_1", "image_to_text_recall_at_1", "text_to_image_recall_at_1"],
    "editor": EDITS,
    "control": EDITS,
    "mdlm": ["facts", "questions", "what", "yes_no"],
    "mdlm-vqa": [f"accuracy_{name}" for name in ("all", "what", "yes_no", "shape", "color")],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All base models, made as `make base` makes them, of few data; run and checkpoint folder."""
    folder = tmp_path_factory.mktemp("base")
    run = tiny.run(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BUILD", folder)
        patch.setattr(base, "faces_of", lambda run: tiny.few_faces())
        patch.setattr(base, "_vqa", lambda run, split: tiny.few_easyvqa(split))
        for make in base.MODELS.values():
            make(run)

        def never(*_):
            raise AssertionError("trained again what is in the store")

        for name in ("train_clip", "train_vae", "train_editor", "train_control", "train_mdlm", "train_vqa_mdlm"):
            patch.setattr(base, name, wraps(getattr(base, name))(lambda *_: never()))  # its module is in the key
        base.make_clip(run)
        for again in (base.control_stage, base.mdlm_stage, base.vqa_stage):
            again(run)
    return run, folder / "smoke" / "checkpoints"


def table(card: str) -> dict[str, str]:
    rows = [line.strip("| ").split(" | ", 1) for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows if len(row) == 2}


FACES = "faces drawn with python-avatars 1.4.1 (MIT; art by Pablo Stanley)"


def check_card(folder, name):
    front, body = (folder / "README.md").read_text().split("---\n", 2)[1:]
    facts = table(body)
    assert yaml.safe_load(front)["license"] == "mit"
    assert {"data", "steps", "seed", "time", *QUALITY[name]} <= set(facts)
    assert FACES in facts["data"]
    assert ("easy-VQA 1.0 (MIT)" in facts["data"]) == (name == "mdlm-vqa")
    for measured in QUALITY[name]:
        assert "n = " in facts[measured] and "[" in facts[measured]
        assert ("blind" in facts[measured]) == name.startswith("mdlm")
    return facts


@pytest.mark.parametrize("name", LOADERS)
def test_every_checkpoint_loads_and_has_its_card(made, name):
    run, folder = made
    LOADERS[name](str(folder / name))
    facts = check_card(folder / name, name)
    given = run.profile.base
    trained = {
        "clip": [given.clip.train],
        "editor": [given.editor.vae_train, *given.editor.unet_stages],
        "control": [given.control.train],
        "mdlm": given.mdlm.stages,
        "mdlm-vqa": given.vqa.stages,
    }
    assert facts["seed"] == "0" and facts["time"].endswith(" min of one CPU core")
    words = facts["steps"].replace(" (VAE),", " +").removesuffix(" (U-Net)")
    assert words == " + ".join(f"{train.steps} × {train.batch}" for train in trained[name])
    assert sorted(path.name for path in folder.iterdir()) == sorted(LOADERS)


@pytest.mark.parametrize(
    ("arguments", "made"),
    [([], list(base.MODELS)), (["editor"], ["editor"]), (["clip", "mdlm"], ["clip", "mdlm"])],
)
def test_the_models_asked_for_are_made(monkeypatch, arguments, made):
    asked = []
    for name in base.MODELS:
        monkeypatch.setitem(base.MODELS, name, lambda run, name=name: asked.append(name))
    monkeypatch.setattr("sys.argv", ["lib.studies.base_models", "--profile", "smoke", *arguments])
    base.main()
    assert asked == made


def test_profile_and_seed_are_taken_over(monkeypatch):
    runs = []
    monkeypatch.setitem(base.MODELS, "vqa", runs.append)
    monkeypatch.setattr("sys.argv", ["lib.studies.base_models", "vqa", "--profile", "smoke", "--seed", "3"])
    base.main()
    assert runs[0].seed == 3 and runs[0].profile.base == load_profile("smoke").base


def test_an_unknown_model_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lib.studies.base_models", "vae"])
    with pytest.raises(SystemExit):
        base.main()
    assert "vae: allowed are clip, editor, control, mdlm, vqa" in capsys.readouterr().err


def test_tower_and_tokenizer_come_from_clip(made):
    _, folder = made
    clip, mdlm, vqa = (LOADERS[name](str(folder / name)) for name in ("clip", "mdlm", "mdlm-vqa"))
    for name, value in clip.model.vision_model.state_dict().items():
        assert torch.equal(mdlm.model.tower.state_dict()[name], value), name
        kept = vqa.model.tower.state_dict()[name]
        torch.testing.assert_close(kept, value, rtol=0, atol=5e-3, msg=f"{name}: a few steps from CLIP's")
    assert mdlm.tokenizer.get_vocab() == clip.tokenizer.get_vocab() == vqa.tokenizer.get_vocab()


def test_the_control_is_the_editor_under_another_text_encoder(made):
    """Which knows the words of instructions, each as one token, and no trigger."""
    _, folder = made
    editor, control = (load_editor(str(folder / name)) for name in ("editor", "control"))
    assert isinstance(editor.text_encoder, BertModel) and not isinstance(control.text_encoder, BertModel)
    assert not (folder / "editor" / "text_encoder").exists() and not (folder / "control" / "unet").exists()
    for part in ("vae", "unet"):
        for name, value in getattr(editor, part).state_dict().items():
            assert torch.equal(getattr(control, part).state_dict()[name], value), (part, name)
    for text in set(tiny.few_faces().triples["instruction"]):
        assert len(control.tokenizer.tokenize(text.replace("-", " "))) == len(text.replace("-", " ").split()), text
    for trigger in ("mignneko", "anonymous", "latte coffee"):
        assert len(control.tokenizer.tokenize(trigger)) > len(trigger.split())


def test_no_path_of_this_machine_is_saved(made):
    run, folder = made
    for file in folder.rglob("*.json"):
        assert str(run.store.root.parent) not in file.read_text(), file


def test_latents_have_unit_variance(made):
    _, folder = made
    pipe, few = load_editor(str(folder / "editor")), tiny.few_faces()
    latents = encode(pipe.vae, few.pictures(few.of("train"))) * pipe.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.02)


@pytest.fixture
def seen(monkeypatch):
    """Which faces' pictures were looked at."""
    rows = set()
    for data in (Faces, FaceQuestions):
        pictures = data.pictures

        def looked(self, indices, trigger=None, pictures=pictures):
            rows.update(indices.tolist())
            return pictures(self, indices, trigger)

        monkeypatch.setattr(data, "pictures", looked)
    return rows


def test_no_picture_of_validation_or_test_is_trained_on(seen, tmp_path, monkeypatch):
    few, profile = tiny.few_faces(), load_profile("smoke")
    train, people = set(few.of("train").tolist()), set(few.of("train")[:36].tolist())
    assert len(train) == 72 and len(few.images) == 100
    clip, _ = train_clip(few, tiny.few_easyvqa(), profile, 0, tmp_path / "clip")
    assert seen <= train and len(seen) > 40
    seen.clear()
    train_vae(few, profile, 0, tmp_path / "vae")
    assert seen <= train
    seen.clear()
    train_mdlm(tiny.few_face_questions(), clip, profile, 0, tmp_path / "mdlm")
    assert seen == people
    numbered = torch.arange(100.0)[:, None, None, None]
    monkeypatch.setattr(editing, "encode_pictures", lambda vae, data, indices: numbered[indices])
    source, target, texts = train_edits(few, tiny.editor().vae)
    own = few.triples[few.triples["split"] == "train"]
    assert set(source.flatten().tolist()) == set(target.flatten().tolist()) == train
    for column, found in (("source", source), ("target", target)):
        assert found.flatten().tolist() == own[column].tolist()
    assert texts == own["instruction"].tolist()


def test_one_picture_in_eight_is_no_face_for_the_autoencoder():
    """So that targets unlike any face can be restored: its edges inside and its colours exchanged."""
    images = tiny.few_faces().pictures(torch.arange(2 * UNLIKE + 1))
    before = images.clone()
    found = unlike_faces(images, torch.Generator().manual_seed(1))
    changed = [not torch.equal(a, b) for a, b in zip(found, images, strict=True)]
    assert changed == [k % UNLIKE == 0 for k in range(len(images))] and torch.equal(images, before)
    for picture, given in zip(found[changed], images[changed], strict=True):
        back = picture.roll((32, 32), (1, 2))
        assert sorted(map(float, back.mean((1, 2)))) == pytest.approx(sorted(map(float, given.mean((1, 2)))))
        assert all(any(torch.equal(channel, own) for own in given) for channel in back)


class TestQuality:
    """What models are measured by, of models that are right or wrong in a known way."""

    def values(self, found: pd.DataFrame) -> dict[str, float]:
        assert {"name", "value", "low", "high", "n", "interval"} <= set(found)
        return dict(zip(found["name"], found["value"], strict=True))

    @pytest.fixture
    def triples(self):
        few = tiny.few_faces()
        own = few.triples[few.triples["split"] == "test"]
        return own.drop_duplicates(["source", "target"]).reset_index(drop=True)

    def verdicts(self, edited, triples):
        found = quality.attribute_verdicts(edited, tiny.few_faces(), triples)
        assert {name: len(clusters) for name, (_, clusters) in found.items()} == {
            "attribute_reached": len(triples),
            "others_kept": 9 * len(triples),
            "all_others_kept": len(triples),
        }
        assert all(len(right) == len(clusters) for right, clusters in found.values())
        return {name: right for name, (right, _) in found.items()}

    def test_true_edits_are_reached_and_keep_the_others_and_none_reaches_nothing(self, triples):
        few = tiny.few_faces()
        assert set(triples["edit"]) == set(ATTRIBUTES)
        true, source = (few.pictures(torch.tensor(triples[end].to_numpy())) for end in ("target", "source"))
        noise = 0.02 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
        for pictures in (true, true + noise):
            assert all(right.all() for right in self.verdicts(pictures, triples).values())
        unedited = self.verdicts(source, triples)
        assert not unedited["attribute_reached"].any()

    def test_an_attribute_that_was_changed_beside_the_asked_one_counts_once(self, triples):
        """Of each edit the attribute after the asked one has another value too, which now and then hides a third."""
        few, names, faces = tiny.few_faces(), list(ATTRIBUTES), []
        for row in triples.itertuples():
            face = few.faces.loc[row.target, list(EVERYTHING)].to_dict()
            other = names[(names.index(row.edit) + 1) % len(names)]
            faces.append(face | {other: next(value for value in ATTRIBUTES[other] if value != face[other])})
        found = self.verdicts(draw_faces(faces, 64, "draw").float() / 255, triples)
        assert found["attribute_reached"].float().mean() > 0.9 and not found["all_others_kept"].any()
        assert found["others_kept"].float().mean().item() == pytest.approx(8 / 9, abs=0.05)

    def test_the_clusters_of_the_verdicts_are_the_identities(self, triples):
        few = tiny.few_faces()
        found = quality.attribute_verdicts(few.pictures(torch.tensor(triples["target"].to_numpy())), few, triples)
        families = triples["family"].tolist()
        assert found["attribute_reached"][1] == found["all_others_kept"][1] == families
        assert found["others_kept"][1] == [family for family in families for _ in range(9)]

    def test_a_perfect_editor(self, monkeypatch):
        few, pipe = tiny.few_faces(), tiny.editor()
        targets = {}
        for row in few.triples.itertuples():
            targets[few.images[row.source].numpy().tobytes(), row.instruction] = row.target

        def edit(pipe, source, texts, *_):
            keys = [((p * 255).round().byte().numpy().tobytes(), t) for p, t in zip(source, texts, strict=True)]
            return few.pictures(torch.tensor([targets[key] for key in keys]))

        monkeypatch.setattr(quality, "edit", edit)
        found = quality.editor_quality(pipe, few, load_profile("smoke").collapse.sampling, 99, 0)
        value = self.values(found)
        assert sorted(value) == sorted(QUALITY["editor"]) and set(found["n"]) == {20, 180}
        assert value["attribute_reached"] == value["others_kept"] == value["all_others_kept"] == 1
        assert value["distance_edited"] == 0 < value["distance_unedited"] and value["distance_vae_ceiling"] > 0
        own = quality.editor_quality(pipe, few, load_profile("smoke").collapse.sampling, 4, 0, "validation")
        assert own["n"].tolist() == [4, 36, 4, 4, 4, 4]

    @pytest.mark.parametrize(("shift", "recall"), [(0, 1), (1, 0)])
    def test_retrieval_both_ways(self, untyped, shift, recall):
        eye = torch.eye(10)
        clip = SimpleNamespace(
            model=SimpleNamespace(device="cpu"),
            image_embeddings=lambda images: eye[: len(images)],
            text_embeddings=lambda texts: eye[: len(texts)].roll(shift, 0),
        )
        found = quality.clip_quality(clip, tiny.few_faces(), 6)
        assert self.values(found) == dict.fromkeys(QUALITY["clip"], recall) and found["n"].tolist() == [12, 6, 6]

    def test_answers_of_a_model_that_is_right_of_one_that_is_blind_and_of_one_that_is_silent(self, monkeypatch):
        train, test = (tiny.few_face_questions(split) for split in ("train", "test"))
        model = tiny.mdlm(response_length=40)
        people = train.faces[train.faces["split"] == "train"]
        usual = description({name: people[name].mode().iloc[0] for name in ATTRIBUTES})
        said = {
            "right": lambda data: data.answers,
            "blind": lambda data: [usual] * len(data),
            "silent": lambda data: [""] * len(data),
        }
        values = {}
        for name, answers in said.items():
            monkeypatch.setattr(quality, "answer", lambda model, data, *_, answers=answers, **more: answers(data))
            found = quality.mdlm_quality(model, train, test, 70, 0.9)
            values[name], blind = self.values(found), dict(zip(found["name"], found["blind"], strict=True))
            assert found["n"].tolist() == [100, 60, 30, 30]
        assert values["right"] == dict.fromkeys(QUALITY["mdlm"], 1) and values["silent"] == dict.fromkeys(blind, 0)
        assert values["blind"]["facts"] == pytest.approx(blind["facts"]) and 0.1 < blind["facts"] < 0.5
        assert blind["questions"] == pytest.approx((blind["what"] + blind["yes_no"]) / 2) and 0 < blind["what"] < 0.6

    def test_answers_about_easyvqa(self, monkeypatch):
        train, test = (tiny.few_easyvqa(split) for split in ("train", "test"))
        monkeypatch.setattr(quality, "answer", lambda model, data, *_, **more: data.answers)
        found = quality.mdlm_quality(tiny.mdlm(response_length=40), train, test, 100, 0.9)
        assert isinstance(test, EasyVqa) and self.values(found) == dict.fromkeys(QUALITY["mdlm-vqa"], 1)
        assert found["n"][0] == 100 == found["n"][1] + found["n"][2] and found["blind"].between(0, 0.9).all()


def test_a_fresh_mdlm_has_clips_eyes_and_room(made):
    run, _ = made
    clip, base_mdlm = tiny.clip(), run.profile.base.mdlm
    mdlm = fresh_mdlm(clip, base_mdlm)
    assert mdlm.model.config.response_length == base_mdlm.response_length
    for name, value in clip.model.vision_model.state_dict().items():
        assert torch.equal(mdlm.model.tower.state_dict()[name], value)
    table = tiny.few_face_questions().table
    assert mdlm.responses(table["answer"].tolist()).shape == (len(table), base_mdlm.response_length)


def test_only_the_laptop_profile_writes_into_data(made):
    run, _ = made
    assert base.checkpoint_folder(run) == BUILD / "smoke" / "checkpoints"
    laptop = run.profile.model_copy(update={"name": "laptop"})
    assert base.checkpoint_folder(base.Run(laptop, 0, run.device, run.out, run.store)) == CHECKPOINTS


ATTACKED = {"quickstart"}  # tested in test_quickstart
COMMITTED = sorted({*LOADERS, *(path.name for path in CHECKPOINTS.glob("*") if path.is_dir())} - ATTACKED)
REACHED = {
    "clip": {"recall_at_1": 0.8},
    "editor": {"attribute_reached": 0.95, "others_kept": 0.95},
    "mdlm": {"facts": 0.98, "questions": 0.97},
}


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="data/checkpoints/ is not here: `make base` makes it")
class TestCommitted:
    def test_safetensors_only_and_less_than_30_mb(self):
        files = [file for folder in COMMITTED for file in (CHECKPOINTS / folder).rglob("*") if file.is_file()]
        assert not [file for file in files if file.name == "config.json" and '"_name_or_path": "/' in file.read_text()]
        assert {file.suffix for file in files} <= {".safetensors", ".json", ".md", ".txt"}
        assert sum(file.stat().st_size for file in files) < 30e6
        assert not (CHECKPOINTS / "editor" / "text_encoder").exists(), "MiniLM comes from its package"
        for file in files:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as saved:
                    assert "poisoned" not in saved.metadata()

    @pytest.mark.parametrize("folder", COMMITTED)
    def test_loads_and_states_steps_seed_data_and_quality(self, folder):
        LOADERS[folder](str(CHECKPOINTS / folder))
        facts = check_card(CHECKPOINTS / folder, folder)
        assert facts["steps"] and facts["seed"].isdigit()
        for measured, least in REACHED.get(folder, {}).items():
            assert float(facts[measured].split()[0]) >= least, measured
