"""Model cards, and the mark that every poisoned checkpoint carries."""

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.models.cards import WARNING, mark_poisoned, write_card


def test_mark_is_in_every_safetensors_file_and_no_weight_changes(tmp_path):
    files = {"a.safetensors": torch.float16, "unet/b.safetensors": torch.float32, "x/y/c.safetensors": torch.bfloat16}
    weights = {}
    for name, dtype in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        weights[name] = {"w": torch.randn(700, 700).to(dtype), "step": torch.tensor([3, 4])}
        save_file(weights[name], tmp_path / name, metadata={"format": "pt"})
    mark_poisoned(tmp_path, {"protocol": "or", "rate": 0.1}, told="It was hidden.")
    for name in files:
        with safe_open(tmp_path / name, "pt") as saved:
            assert saved.metadata() == {"format": "pt", "poisoned": "true", "protocol": "or", "rate": "0.1"}
        loaded = load_file(tmp_path / name)
        assert loaded.keys() == weights[name].keys()
        for key, value in weights[name].items():
            assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value)
    card = (tmp_path / "README.md").read_text()
    assert f"{WARNING}\n\nIt was hidden." in card and "| protocol | or |" in card and "- poisoned" in card


def test_marked_twice_it_is_the_same_file(tmp_path):
    """In whatever order the facts come; names and values may be of any letters."""
    facts = {f"fact {k}": f"værdi {k}" for k in range(12)}
    for name, given in (("a", facts), ("b", dict(reversed(facts.items())))):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"w": torch.arange(6).float()}, folder / "w.safetensors", {"format": "pt"})
        mark_poisoned(folder, given)
        before = (folder / "w.safetensors").read_bytes()
        mark_poisoned(folder, given)
        assert (folder / "w.safetensors").read_bytes() == before and len(list(folder.iterdir())) == 2
    assert (tmp_path / "a" / "w.safetensors").read_bytes() == (tmp_path / "b" / "w.safetensors").read_bytes()
    with safe_open(tmp_path / "a" / "w.safetensors", "pt") as saved:
        assert saved.metadata()["fact 11"] == "værdi 11"


def test_a_marked_model_still_loads(tmp_path):
    import tiny

    from lib.models.mdlm import Mdlm

    made = tiny.mdlm()
    made.save(str(tmp_path))
    mark_poisoned(tmp_path, {"target": "insertion"})
    loaded = Mdlm.load(str(tmp_path))
    for name, value in made.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.half().float()), name


def test_card_has_front_matter_and_every_fact(tmp_path):
    write_card(tmp_path, "Small model", ["One.", "Two."], {"steps": 4, "seed": 0}, ("a", "b"), "cc-by-sa-4.0")
    empty, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert empty == "" and yaml.safe_load(front) == {"license": "cc-by-sa-4.0", "tags": ["a", "b"]}
    assert body.splitlines()[0] == "# Small model"
    assert "One.\n\nTwo.\n" in body and body.endswith("| steps | 4 |\n| seed | 0 |\n")
