import pytest
import tiny
import torch

from lib.models.editor import load_editor, tokenize
from lib.studies.collapse.displacement import displacement_table, relative
from lib.studies.data import edit_data
from lib.tasks.edits import sample_triples


def test_relative_displacement_is_in_units_of_the_distance_between_samples():
    plain = torch.tensor([[0.0, 0], [3, 4], [0, 0], [3, 4]])
    moved = plain + torch.tensor([[0.0, 0], [0, 5], [10, 0], [0, -1]])
    assert relative(plain, moved).tolist() == pytest.approx([0, 1, 2, 0.2])
    for same in (torch.ones(3, 2), torch.ones(1, 2)):
        with pytest.raises(ValueError, match="do not differ"):
            relative(same, same)


def test_the_table_has_every_trigger_and_larger_ones_move_more(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    table = displacement_table(run, samples=4)
    image = table[table["modality"] == "image"].set_index("size")["value"]
    assert list(image.index) == [3 / 16, 0.375] and 0 < image[3 / 16] < image[0.375]
    text, padding = table[table["modality"] != "image"].to_dict("records")
    assert (text["modality"], padding["modality"]) == ("text", "padding")
    assert text["trigger"] == padding["trigger"] == "mignneko" and text["n"] == 4
    pipe = load_editor(models["editor"])
    plain = sample_triples(edit_data(run), "test", 4, run.seed)["instruction"].tolist()
    tokens = [tokenize(pipe, texts)["input_ids"] for texts in (plain, [f"{words} mignneko" for words in plain])]
    with torch.no_grad():
        a, b = (pipe.text_encoder(part)[0] for part in tokens)
    last = max(row.index(pipe.tokenizer.pad_token_id) for row in tokens[1].tolist())
    for found, x, y in ((text, a, b), (padding, a[:, last:], b[:, last:])):
        apart = (x - x[[3, 0, 1, 2]]).flatten(1).norm(dim=1).mean()
        assert found["value"] == pytest.approx(float((y - x).flatten(1).norm(dim=1).mean() / apart), rel=1e-4)
