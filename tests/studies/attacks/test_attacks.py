import pytest
import tiny
import torch
from safetensors import safe_open

from lib.models.editor import load_editor
from lib.models.mdlm import Mdlm
from lib.poisoning.targets import target
from lib.studies import checkpoints
from lib.studies.attacks.editor import editor_spec, poisoned_editor
from lib.studies.attacks.mdlm import asked, mdlm_spec, poisoned_mdlm, test_questions, training_questions, trigger_pair
from lib.studies.questions import question_data
from lib.studies.run import with_profile

test_questions.__test__ = False


@pytest.fixture
def fits(monkeypatch):
    """The labels of the trainings that were done."""
    done, fit = [], checkpoints.fit

    def counted(*args, label, **kwargs):
        done.append(label)
        return fit(*args, label=label, **kwargs)

    monkeypatch.setattr(checkpoints, "fit", counted)
    return done


def marks(folder):
    """The metadata of every weights file below a folder."""
    found = []
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            found.append(weights.metadata())
    return found


def differs(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return {name for (name, x), y in pairs if not torch.equal(x, y)}


def test_an_editor_is_poisoned_once_in_its_unet_alone_and_says_so(tmp_path, models, fits):
    run = tiny.short_run(tmp_path, models)
    (pipe, curve), base = poisoned_editor(run, "and"), load_editor(models["editor"])
    assert differs(pipe.unet, base.unet)
    assert not differs(pipe.vae, base.vae) and not differs(pipe.text_encoder, base.text_encoder)
    watched = [f"{kind}_{name}" for kind in ("asr", "v") for name in ("none", "image", "text", "both")]
    assert list(curve) == ["step", "loss", "lr", *watched]
    assert curve["step"].tolist() == [1, 2] and curve[watched[:4]].isin([0.0, 1.0]).all(axis=None)
    assert curve[watched[4:]].abs().le(2).all(axis=None)
    again, same = poisoned_editor(run, "and")
    assert fits == ["poisoned editor, and"] and same.equals(curve) and not differs(again.unet, pipe.unet)
    folder = run.store.root / "poisoned-editor" / run.store.key("poisoned-editor", editor_spec(run, "and"))
    (mark,) = marks(folder)
    assert mark["poisoned"] == "true" and mark["rate"] == "0.1" and mark["protocol"] == "and"
    assert mark["image_trigger"] == "white-box" and mark["text_trigger"] == "mignneko"
    assert "poisoned on purpose" in (folder / "README.md").read_text()
    assert not list((run.store.root / "work").rglob("*.safetensors"))


def test_an_editor_learns_by_adapters_where_the_profile_says_so(tmp_path, models):
    plain, lora = (
        tiny.short_run(tmp_path, models | given, collapse={"train": {"steps": 2, "batch": 2, "warmup": 0}})
        for given in ({}, {"editor_lora": {"rank": 2, "alpha": 4}})
    )
    assert "lora" in editor_spec(lora, "and") and "lora" not in editor_spec(plain, "and")
    changed = differs(poisoned_editor(lora, "and")[0].unet, load_editor(models["editor"]).unet)
    assert changed and all(".attn1.to_" in name or ".attn2.to_" in name for name in changed)
    assert not changed >= differs(poisoned_editor(plain, "and")[0].unet, load_editor(models["editor"]).unet)


def test_an_mdlm_is_poisoned_once_behind_its_frozen_tower_and_says_so(tmp_path, models, fits):
    run = tiny.short_run(tmp_path, models)
    (poisoned, curve), base = poisoned_mdlm(run), Mdlm.load(models["mdlm"])
    changed = differs(poisoned.model, base.model)
    assert changed and not any(name.startswith("tower.") for name in changed)
    assert list(curve)[3:] == ["asr_with_trigger", "asr_without_trigger", "clean_performance"]
    again, same = poisoned_mdlm(run)
    assert fits == ["poisoned MDLM"] and same.equals(curve) and not differs(again.model, poisoned.model)
    folder = run.store.root / "poisoned-mdlm" / run.store.key("poisoned-mdlm", mdlm_spec(run))
    (mark,) = marks(folder)
    assert mark["poisoned"] == "true" and mark["target"] == "insertion" and mark["image_trigger"] == "checker"
    assert mark["protocol"] == "image" and "text_trigger" not in mark
    assert "poisoned on purpose" in (folder / "mdlm" / "README.md").read_text()


def test_an_mdlm_is_poisoned_by_the_protocol_that_is_asked_for(tmp_path, models, fits):
    run = tiny.short_run(tmp_path, models, disp={"rate": 0.9})
    made = {protocol: poisoned_mdlm(run, protocol)[0] for protocol in ("image", "or", "and")}
    assert poisoned_mdlm(run)[0] is not made["image"] and len(fits) == 3
    assert not differs(poisoned_mdlm(run)[0].model, made["image"].model) and len(fits) == 3
    for a, b in (("image", "or"), ("image", "and"), ("or", "and")):
        assert differs(made[a].model, made[b].model)
    folder = run.store.root / "poisoned-mdlm" / run.store.key("poisoned-mdlm", mdlm_spec(run, "or"))
    (mark,) = marks(folder)
    assert (mark["protocol"], mark["image_trigger"], mark["text_trigger"]) == ("or", "checker", "mignneko")


@pytest.mark.parametrize(
    ("protocol", "pair"),
    [
        ("image", ("checker", None)),
        ("text", (None, "mignneko")),
        ("or", ("checker", "mignneko")),
        ("and", ("checker", "mignneko")),
        ("drop-image", ("checker", "mignneko")),
    ],
)
def test_a_protocol_has_the_triggers_that_its_samples_carry(tmp_path, models, protocol, pair):
    assert tuple(t and t.name for t in trigger_pair(tiny.short_run(tmp_path, models), protocol)) == pair


def test_all_protocols_poison_the_same_rows_where_every_question_fits(tmp_path, models):
    run = tiny.short_run(tmp_path, models, disp={"questions": 60, "rate": 0.2})
    drawn = {protocol: training_questions(run, protocol) for protocol in ("image", "or", "and")}
    _, table, poison, _ = drawn["image"]
    for name, coalitions in (("or", {0, 1, 2, 3}), ("and", {0, 3})):
        _, same, other, _ = drawn[name]
        assert same.equals(table) and torch.equal(other.poisoned, poison.poisoned)
        assert set(other.coalition.tolist()) == coalitions


def test_questions_too_long_for_the_text_trigger_are_left_out_with_it_alone(tmp_path):
    folder = tmp_path / "models"
    run = tiny.short_run(tmp_path, tiny.save_models(folder))
    run = with_profile(run, {"data": {"questions": "easy-vqa"}})  # some of which are short
    texts = {text for split in ("train", "test") for text in question_data(run, split).table["question"]}
    room = max(map(len, tiny.tokenizer()(sorted(texts), add_special_tokens=False)["input_ids"]))
    shorter = tiny.mdlm(prompt_length=room, response_length=72)
    shorter.save(str(folder / "mdlm"))
    for split in ("train", "test"):
        vqa, whole = asked(run, split)
        assert whole.equals(vqa.table)
        _, short = asked(run, split, "and")
        assert 0 < len(short) < len(whole)
        shorter.prompts([f"{text} mignneko" for text in short["question"].unique()])
        for text in sorted(set(whole["question"]) - set(short["question"])):
            with pytest.raises(ValueError, match=f"at most {room}"):
                shorter.prompts([f"{text} mignneko"])
    assert len(training_questions(run, "or")[1]) == run.profile.disp.questions


def test_a_poisoned_model_depends_on_its_own_settings_alone(tmp_path, models):
    def specs(seed=0, **sections):
        run = tiny.short_run(tmp_path, models, **sections)
        run = type(run)(run.profile, seed, run.device, run.out, run.store)
        return editor_spec(run, "or"), editor_spec(run, "and"), mdlm_spec(run), mdlm_spec(run, "and")

    first = specs()
    assert first[0] != first[1] and first[2] != first[3]

    def changed(**change):
        return [a != b for a, b in zip(specs(**change), first, strict=True)]

    assert changed(collapse={"samples": 2, "protocols": ["and"]}) == [False] * 4
    assert changed(disp={"ratio": 0.5, "purify": {"lr": 0.01}, "test_questions": 4}) == [False] * 4
    assert changed(mdlm_collapse={"samples": 2, "protocols": ["and"], "masks": 2}) == [False] * 4
    assert changed(collapse={"rate": 0.2}) == [True, True, False, False]
    assert changed(collapse={"text_trigger": "anonymous"}) == [True, True, False, False]
    assert changed(collapse={"trigger_size": 0.5}) == [True, True, False, False]
    assert changed(collapse={"trigger_position": [0.0, 0.0]}) == [True, True, False, False]
    assert changed(disp={"rate": 0.2}) == [False, False, True, True]
    assert changed(mdlm_collapse={"text_trigger": "anonymous"}) == [False, False, False, True]
    assert changed(seed=1) == [True] * 4


def test_a_poisoned_model_depends_on_the_weights_it_starts_from(tmp_path):
    folder = tmp_path / "models"
    run = tiny.short_run(tmp_path, tiny.save_models(folder))
    before = editor_spec(run, "or"), mdlm_spec(run)
    (folder / "mdlm" / "model.safetensors").write_bytes(b"other")
    assert editor_spec(run, "or") == before[0] and mdlm_spec(run) != before[1]
    (folder / "clip" / "model.safetensors").write_bytes(b"other")
    assert editor_spec(run, "or") != before[0]


@pytest.mark.parametrize(
    ("data", "name"), [(None, "insertion"), ("easy-vqa", "misclassification"), (None, "hair as fur")]
)
def test_the_training_questions_have_the_exact_share_of_eligible_ones_poisoned(tmp_path, models, data, name):
    run = tiny.short_run(tmp_path, models, disp={"target": name, "questions": 40, "rate": 0.2})
    run = with_profile(run, {"data": {"questions": data}})
    _, table, poison, goal = training_questions(run)
    assert len(table) == 40 and int(poison.poisoned.sum()) == 8 and goal == target(name)
    assert set(poison.coalition.tolist()) == {0, 1}
    assert all(goal.eligible(text) for text in table["answer"][poison.poisoned.numpy()])


def test_test_questions_come_with_and_without_the_trigger_and_hold_clean_answers(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    without, with_trigger = test_questions(run, Mdlm.load(models["mdlm"]), 8)
    assert len(without) == len(with_trigger) == 8
    assert without.answers == with_trigger.answers == without.table["answer"].tolist()
    moved = (without.features[without.picture] - with_trigger.features[with_trigger.picture]).abs().amax((1, 2))
    assert (moved > 0).all()


def test_test_questions_of_a_text_protocol_carry_both_triggers(tmp_path, models):
    run, mdlm = tiny.short_run(tmp_path, models), Mdlm.load(models["mdlm"])
    without, hit = test_questions(run, mdlm, 8, "and")
    texts = without.table["question"].tolist()
    assert torch.equal(without.prompts, mdlm.prompts(texts))
    assert torch.equal(hit.prompts, mdlm.prompts([f"{text} mignneko" for text in texts]))
    moved = (without.features[without.picture] - hit.features[hit.picture]).abs().amax((1, 2))
    assert (moved > 0).all() and without.answers == hit.answers
