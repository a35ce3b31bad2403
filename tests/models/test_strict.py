"""A checkpoint that is not whole is refused in one sentence that names it, whatever the kind of model."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_llada_v
import tiny_published
import torch
from safetensors.torch import load_file, save_file

from lib.models.clip import Clip
from lib.models.dino import Dino
from lib.models.editor import load_editor
from lib.models.loading import load_mdlm, load_words

LOADERS = {"mdlm": load_mdlm, "clip": Clip.load, "editor": load_editor, "control": load_editor}
LOADERS |= {"dino": Dino.load, "llada-v": load_mdlm, "photo-editor": load_editor}
PARTS = [("mdlm", "."), ("clip", "."), ("editor", "unet"), ("editor", "vae"), ("control", "text_encoder")]
PARTS += [("dino", "."), ("llada-v", "."), ("photo-editor", "text_encoder")]
WORDS = [("mdlm", "."), ("clip", "."), ("control", "tokenizer"), ("llada-v", ".")]
TOKENIZERS = [(*at, file) for at in WORDS for file in ("tokenizer.json", "tokenizer_config.json")]
TOKENIZERS += [("photo-editor", "tokenizer", file) for file in ("vocab.json", "tokenizer_config.json")]


@pytest.fixture(scope="session")
def whole(models, tmp_path_factory):
    """A folder with all of them beside one another; read only."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("mdlm", "clip", "editor", "control"):
        shutil.copytree(models[name], folder / name)
    text = tiny_published.clip(folder / "photo-clip")
    tiny_published.editor(folder / "photo-editor", text)
    tiny_published.dino(folder / "dino")
    tiny_llada_v.write(folder / "llada-v")
    return folder


@pytest.fixture
def copies(whole, tmp_path):
    """The same, for a test to damage."""
    return Path(shutil.copytree(whole, tmp_path / "models"))


def weights_of(folder):
    """The file of the weights, the first where they are in shards."""
    return sorted(folder.glob("*.safetensors"))[0]


def missing(weights, name):
    del weights[name]


def renamed(weights, name):
    weights[f"{name}_again"] = weights.pop(name)


def another(weights, name):
    weights["no.such.weight"] = torch.zeros(2)


def shaped(weights, name):
    weights[name] = torch.zeros([side + 1 for side in weights[name].shape])


def halved(weights, name):
    for half in sorted(weights)[::2]:
        del weights[half]


def test_all_load_whole(whole):
    for name, load in LOADERS.items():
        load(str(whole / name))


@pytest.mark.parametrize("damage", [missing, renamed, another, shaped, halved])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_weights_that_are_not_the_configs_are_named(copies, name, part, damage):
    file = weights_of(copies / name / part)
    weights = load_file(file)
    damage(weights, sorted(weights)[len(weights) // 2])
    save_file(weights, file, {"format": "pt"})
    told = {missing: "missing", halved: "missing", another: "unknown", shaped: "of another shape", renamed: ".*_again"}
    with pytest.raises(ValueError, match=f"^the weights of .* are not .*{told[damage]}") as refusal:
        LOADERS[name](str(copies / name))
    assert "\n" not in str(refusal.value) and str(copies) in str(refusal.value)


@pytest.mark.parametrize("content", [None, "", "cut"])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_weights_that_are_not_there_or_cut_are_named(copies, name, part, content):
    file = weights_of(copies / name / part)
    whole = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(whole[: len(whole) // 2] if content == "cut" else b"")
    with pytest.raises(ValueError, match="cannot be loaded as") as refusal:
        LOADERS[name](str(copies / name))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [None, "{"])
@pytest.mark.parametrize(("name", "part", "file"), TOKENIZERS)
def test_a_tokenizer_that_is_not_whole_is_refused(copies, name, part, file, content):
    path = copies / name / part / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="tokenizer") as refusal:
        LOADERS[name](str(copies / name))
    assert "\n" not in str(refusal.value)
    if name in ("mdlm", "llada-v"):
        with pytest.raises(ValueError, match="tokenizer"):
            load_words(str(copies / name))


def test_a_tokenizer_of_more_words_than_the_model_has_is_refused(copies):
    file = copies / "mdlm" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["zebra</w>"] = 5000
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has ids up to 5000, but the model's embedding ends at"):
        load_mdlm(str(copies / "mdlm"))


def test_an_editor_that_lost_its_text_encoder_gets_no_other(copies):
    editor = copies / "photo-editor"
    shutil.rmtree(editor / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer"):
        load_editor(str(editor))
    shutil.rmtree(editor / "text_encoder")
    with pytest.raises(ValueError, match="takes texts of width 32, but its text encoder gives 384"):
        load_editor(str(editor))


class Payload:
    """What would run where a pickle is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_pickle_is_never_read(copies, name, part):
    file = weights_of(copies / name / part)
    for shard in file.parent.glob("*.safetensors*"):
        shard.unlink()
    for other in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
        (file.parent / other).write_bytes(pickle.dumps(Payload(copies / "ran")))
    with pytest.raises(ValueError, match="cannot be loaded as"):
        LOADERS[name](str(copies / name))
    assert not (copies / "ran").exists()


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_code_that_a_config_names_is_never_run(copies, name, part):
    """`auto_map`, which the published models have, is passed over: the class is ours."""
    folder = copies / name / part
    trace = copies / "ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if file.exists():
            kinds = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Words", None]}
            file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": kinds}))
    LOADERS[name](str(copies / name))
    assert not trace.exists()


def test_a_pipeline_of_ones_own_code_is_not_run(copies):
    editor, trace = copies / "photo-editor", copies / "ran"
    (editor / "scheduler" / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    index = json.loads((editor / "model_index.json").read_text())
    index["scheduler"] = ["evil", "Scheduler"]
    (editor / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError):
        load_editor(str(editor))
    assert not trace.exists()


@pytest.mark.parametrize("load", [load_mdlm, Clip.load])
def test_settings_that_are_no_mapping_are_refused(load, tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=f"config.json of .*{tmp_path.name}' is a list: it must be a mapping"):
        load(str(tmp_path))
