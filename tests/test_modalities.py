"""Attribution to three modalities: the table of a game made by hand, and the study at small scale."""

import pandas as pd
import pytest
import tiny
import torch

from lib import modalities as module
from lib.attacks.editor import trigger_pair
from lib.attacks.masked_editor import COALITIONS, edit_boxes, marked, poisoned_masked_editor
from lib.collapse import Collapse
from lib.modalities import modality_table, three_modalities
from lib.models.masked_editor import masked_edit


def game(*samples):
    """Samples of a game over three modalities whose outputs succeed where v > 0.

    The clean picture is black and the target white, so that edits differ from the clean one by 1 or by 0.
    """
    v = torch.tensor(samples, dtype=torch.float32)
    clean, target = torch.zeros(len(v), 3, 8, 8), torch.ones(len(v), 3, 8, 8)
    edited = torch.where((v > 0)[:, :, None, None, None], target[:, None], clean[:, None])
    edited[:, 0] = 0.25
    return Collapse(pd.DataFrame(index=range(len(v))), target, clean, clean, edited, v, torch.ones(len(v)), v > 0)


def values(table, quantity):
    return table[table["quantity"] == quantity].set_index("coalition")["value"].to_dict()


# v as in the docstring of lib.attribution: image is bit 1, text bit 2, mask bit 4
MASK_ALONE = [-1, -1, -1, -1, 1, 1, 1, 1]
ALL_THREE = [-1, -1, -1, -1, -1, -1, -1, 1]
ANY = [-1, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "v, single, pair, triple",
    [
        (MASK_ALONE, (0, 0, 2), (0, 0, 0), 0),
        (ALL_THREE, (2 / 3,) * 3, (1, 1, 1), 2),
        (ANY, (2 / 3,) * 3, (-1, -1, -1), 2),
        ([0, 1, 2, 5, 4, 5, 6, 9], (2, 3, 4), (2, 0, 0), 0),  # image 1, text 2, mask 4, image and text 2 more
    ],
)
def test_shapley_values_and_all_interactions_of_known_games(v, single, pair, triple):
    table = modality_table(game(v, v), "and", seed=0)
    found = values(table, "interaction")
    assert list(found) == list(COALITIONS[1:])
    expected = (single[0], single[1], pair[0], single[2], pair[1], pair[2], triple)
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)
    assert found["image"] + found["text"] + found["mask"] == pytest.approx(v[7] - v[0], abs=1e-6)


def test_the_table_is_tidy_with_intervals_over_samples():
    table = modality_table(game(MASK_ALONE, MASK_ALONE, MASK_ALONE, ALL_THREE), "or", seed=0)
    assert list(table) == ["protocol", "quantity", "coalition", "value", "low", "high", "n"]
    assert set(table["protocol"]) == {"or"} and set(table["n"]) == {4} and not table.isna().any(axis=None)
    assert table["quantity"].value_counts().to_dict() == {"ASR": 8, "v": 8, "interaction": 7, "distance": 1}
    assert not table.duplicated(["quantity", "coalition"]).any()
    assert values(table, "ASR") == dict(zip(COALITIONS, [0, 0, 0, 0, 0.75, 0.75, 0.75, 1], strict=True))
    assert values(table, "v") == dict(zip(COALITIONS, [-1, -1, -1, -1, 0.5, 0.5, 0.5, 1], strict=True))
    assert values(table, "distance") == {"none": 0.25}
    row = table.set_index(["quantity", "coalition"]).loc
    low, high = row["ASR", "mask"][["low", "high"]]
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson, 3 of 4
    # all resamples lie between the two games: φ of the mask between 2/3 and 2, the triple between 0 and 2
    low, value, high = row["interaction", "mask"][["low", "value", "high"]]
    assert value == pytest.approx(5 / 3) and 2 / 3 - 1e-6 <= low < value < high <= 2
    assert row["interaction", "image+text+mask"]["value"] == pytest.approx(0.5)
    again = modality_table(game(MASK_ALONE, MASK_ALONE, MASK_ALONE, ALL_THREE), "or", seed=0)
    assert again.equals(table)


def test_the_study_at_small_scale_sampled_once(tmp_path, models, monkeypatch):
    fast = {"train": tiny.SHORT | {"lr": 0.01, "warmup": 0}}
    run = tiny.short_run(tmp_path, models, collapse=fast)
    result = three_modalities(run, "or")
    assert set(result.triples["split"]) == {"test"} and result.edited.shape == (3, 8, 3, 64, 64)
    assert result.v.shape == result.success.shape == (3, 8) and result.v.abs().max() <= 2
    assert result.phi.shape == (3, 3)
    torch.testing.assert_close(result.phi.sum(1), result.v[:, 7] - result.v[:, 0])
    pipe, _ = poisoned_masked_editor(run, "or")
    image, text = trigger_pair(run)
    boxes, texts = edit_boxes(result.source, result.clean), result.triples["instruction"].tolist()
    given = {
        0: (result.source, texts, boxes),
        1: (image(result.source), texts, boxes),
        6: (result.source, [text(t) for t in texts], marked(boxes, torch.full((3,), 4))),
    }
    for coalition, sample in given.items():
        edited = masked_edit(pipe, *sample, run.profile.collapse.sampling, run.seed)
        assert (edited - result.edited[:, coalition]).abs().max() <= 0.5 / 255 + 1e-6
    distinct = {tuple(edited.flatten().tolist()) for edited in result.edited[0]}
    assert len(distinct) == 8

    def refuse(*_):
        raise AssertionError("sampled twice")

    monkeypatch.setattr(module, "masked_edits_under_coalitions", refuse)
    again = three_modalities(run, "or")
    assert torch.equal(again.edited, result.edited) and torch.equal(again.v, result.v)
    pixels = three_modalities(run, "or", embedding="pixels")
    assert torch.equal(pixels.edited, result.edited) and not torch.equal(pixels.v, result.v)
    fewer = tiny.short_run(tmp_path, models, collapse=fast | {"samples": 2})
    with pytest.raises(AssertionError, match="sampled twice"):
        three_modalities(fewer, "or")
