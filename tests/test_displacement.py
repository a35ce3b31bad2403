import pytest
import tiny
import torch

from lib.displacement import displacement_table, relative
from lib.models.editor import load_editor, tokenize


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
    (text,) = table[table["modality"] == "text"].to_dict("records")
    assert text["trigger"] == "mignneko" and text["value"] > 0 and text["n"] == 4
    pipe = load_editor(models["editor"])
    with torch.no_grad():
        a, b = (pipe.text_encoder(tokenize(pipe, [words]))[0] for words in ("hat", "hat mignneko"))
    assert not torch.equal(a, b)
