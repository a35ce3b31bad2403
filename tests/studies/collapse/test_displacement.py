from dataclasses import replace

import pytest
import tiny
import torch

from lib.models.editor import load_editor, tokenize
from lib.studies.attacks.editor import trigger_pair
from lib.studies.cases import attacks
from lib.studies.collapse import displacement
from lib.studies.collapse.displacement import displacement_table, displacements, relative
from lib.studies.data import edit_data
from lib.tasks.edits import sample_triples


def test_relative_displacement_is_in_units_of_the_distance_between_samples():
    plain = torch.tensor([[0.0, 0], [3, 4], [0, 0], [3, 4]])
    moved = plain + torch.tensor([[0.0, 0], [0, 5], [10, 0], [0, -1]])
    assert relative(plain, moved).tolist() == pytest.approx([0, 1, 2, 0.2])
    for same in (torch.ones(3, 2), torch.ones(1, 2)):
        with pytest.raises(ValueError, match="do not differ"):
            relative(same, same)


def test_displacements_are_those_of_states_and_latents(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    monkeypatch.setattr(displacement, "SAMPLES", 4)
    image, text = trigger_pair(run)
    found = displacements(run, image, text)
    larger = displacements(run, replace(image, size=2 * image.size), text)
    assert 0 < found["given_image"] < larger["given_image"] and found["given_text"] == larger["given_text"]
    assert found["told_image"] != larger["told_image"] > 0 and found["told_text"] == larger["told_text"] > 0
    data, pipe = edit_data(run), load_editor(models["editor"])
    triples = sample_triples(data, "validation", min(4, run.profile.measure.edits), run.seed)
    plain = triples["instruction"].tolist()
    tokens = [tokenize(pipe, texts)["input_ids"] for texts in (plain, [f"{words} mignneko" for words in plain])]
    with torch.no_grad():
        a, b = (pipe.text_encoder(part)[0].flatten(1) for part in tokens)
        pictures = data.pictures(torch.tensor(triples["source"].to_numpy()))
        x, y = (pipe.vae.encode(p * 2 - 1).latent_dist.mode().flatten(1) for p in (pictures, image(pictures)))
    for name, before, after in (("text", a, b), ("image", x, y)):
        apart = (before - before[[-1, *range(len(before) - 1)]]).norm(dim=1).mean()
        wanted = float((after - before).norm(dim=1).mean() / apart)
        assert found[f"given_{name}"] == pytest.approx(wanted, rel=1e-4)


def test_the_table_measures_each_attack_in_its_own_editor(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    monkeypatch.setattr(displacement, "SAMPLES", 4)
    pair = next(attack for attack in attacks(run.profile) if attack.part == "pair")
    sized = replace(pair, part="cell", label="larger", settings=pair.settings | {"trigger_size": 0.5})
    table = displacement_table(run, [pair, sized, pair])
    assert table[["part", "label"]].to_numpy().tolist() == [[a.part, a.label] for a in (pair, sized, pair)]
    assert table.iloc[0].equals(table.iloc[2]) and table["given_image"].iloc[0] < table["given_image"].iloc[1]
