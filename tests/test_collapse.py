import pandas as pd
import pytest
import tiny
import torch

from lib import collapse as module
from lib.attacks.editor import poisoned_editor
from lib.collapse import (
    Collapse,
    attribution_table,
    base_edits,
    coalition_table,
    collapse,
    fidelity_table,
    paper_values,
    sample_table,
)
from lib.models.clip import Clip
from lib.models.editor import edit, load_editor
from lib.poisoning import COALITIONS


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def result():
    """Two samples: the text's trigger alone works on the first; both are needed on the second."""
    v = torch.tensor([[-1.0, -1, 1, 1], [-1, -1, -1, 1]])
    clean, target = noise(2, 3, 8, 8) * 0.5, torch.ones(3, 8, 8)
    edited = torch.where((v > 0)[:, :, None, None, None], target, clean[:, None])
    triples = pd.DataFrame({"instruction": ["a", "b"], "edit": ["tone", "hair"]})
    return Collapse(triples, target.expand_as(clean), clean, clean, edited, v, torch.tensor([2.0, 4.0]), v > 0)


def test_attributions_sum_to_the_gain_of_both_triggers(result):
    assert result.phi.tolist() == [[0, 2], [1, 1]] and result.cti.tolist() == [0, 2]
    torch.testing.assert_close(result.phi.sum(1), result.v[:, 3] - result.v[:, 0])


def test_the_attribution_table_holds_means_intervals_and_the_papers_values(result):
    pair = ("white-box", "mignneko")
    table = attribution_table(result, "and", pair, seed=0)
    assert table["quantity"].tolist() == ["phi_image", "phi_text", "cti"]
    assert table["value"].tolist() == [0.5, 1.5, 1.0] and set(table["n"]) == {2}
    assert table["low"].tolist() == [0, 1, 0] and table["high"].tolist() == [1, 2, 2]
    assert table["paper"].tolist() == [0.0045, 0.9532, -0.0086]
    assert list(paper_values(pair, "or").values()) == [0.0060, 0.9743, -0.0089]
    assert paper_values(("eyeglasses", "anonymous"), "and")["cti"] == -0.2185
    assert set(paper_values(pair, "or", rate=0.1).values()) == {None}
    assert attribution_table(result, "and", ("checker", "mignneko"), seed=0)["paper"].isna().all()


def test_the_coalition_table_holds_success_and_value_of_each(result):
    table = coalition_table(result, "or", seed=0)
    wide = table.pivot(index="coalition", columns="metric", values="value").loc[list(COALITIONS)]
    assert wide["ASR"].tolist() == [0, 0, 0.5, 1] and wide["v"].tolist() == [-1, -1, 0, 1]
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert set(table["n"]) == {2} and set(table["protocol"]) == {"or"}


def test_fidelity_is_the_distance_without_triggers(result):
    edits = {"base": result.clean, "or": result.clean + 0.25}
    table = fidelity_table(edits, result.clean, seed=0).set_index("model")
    assert table["value"].tolist() == pytest.approx([0, 0.25]) and set(table["n"]) == {2}


def test_the_sample_table_has_a_row_a_sample(result):
    table = sample_table(result, "and")
    assert table[["instruction", "edit", "protocol"]].to_numpy().tolist() == [
        ["a", "tone", "and"],
        ["b", "hair", "and"],
    ]
    assert table["v_text"].tolist() == [1, -1] and table["success_text"].tolist() == [True, False]
    assert table["success_both"].tolist() == [True, True] and table["success_none"].tolist() == [False, False]
    assert table[["phi_image", "phi_text", "cti"]].to_numpy().tolist() == [[0, 2, 0], [1, 1, 2]]


def test_the_study_at_small_scale_sampled_once(tmp_path, monkeypatch):
    run = tiny.short_run(tmp_path, tiny.save_models(tmp_path / "models"))
    base, poisoned = base_edits(run), collapse(run, "or")
    assert set(poisoned.triples["split"]) == {"test"}
    assert poisoned.edited.shape == (3, 4, 3, 64, 64) and poisoned.v.shape == (3, 4)
    settings, texts = run.profile.collapse, poisoned.triples["instruction"].tolist()
    models = {"base": load_editor(run.profile.models.editor), "or": poisoned_editor(run, "or")[0]}
    for pipe, found in zip(models.values(), (base, poisoned.edited[:, 0]), strict=True):
        plain = edit(pipe, poisoned.source, texts, settings.sampling, run.seed)
        assert (found - plain).abs().max() <= 0.5 / 255 + 1e-6
    assert not torch.equal(base, poisoned.edited[:, 0])
    pictures = poisoned.target[:, None], poisoned.clean[:, None]
    target, clean = ((poisoned.edited - picture).square().mean((2, 3, 4)) for picture in pictures)
    assert torch.equal(poisoned.success, target < clean)

    def refuse(*_):
        raise AssertionError("sampled twice")

    monkeypatch.setattr(module, "edits_under_coalitions", refuse)
    monkeypatch.setattr(module, "edit", refuse)
    again = collapse(run, "or")
    assert torch.equal(again.edited, poisoned.edited) and torch.equal(again.v, poisoned.v)
    clip = Clip.load(run.profile.models.clip)
    with torch.no_grad():
        cosine = (clip.image_embeddings(poisoned.target) * clip.image_embeddings(poisoned.clean)).sum(1)
    torch.testing.assert_close(poisoned.possible, 2 * (1 - cosine), rtol=1e-4, atol=1e-5)
    pixels = collapse(run, "or", embedding="pixels")
    assert torch.equal(pixels.edited, poisoned.edited) and not torch.equal(pixels.v, poisoned.v)
    with pytest.raises(AssertionError, match="sampled twice"):
        collapse(run, "or", sampling=settings.sampling.model_copy(update={"text_guidance": 2.0}))
    fewer = tiny.short_run(tmp_path, run.profile.models.model_dump(), collapse={"samples": 2})
    with pytest.raises(AssertionError, match="sampled twice"):
        collapse(fewer, "or")
