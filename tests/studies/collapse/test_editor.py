from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch

from lib.models.clip import Clip
from lib.models.editor import edit, load_editor
from lib.studies.attacks.editor import poisoned_editor
from lib.studies.collapse import editor as module
from lib.studies.collapse.editor import SEED, Collapse, collapse, held_out, null_edits, paper_values, sample_table


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def result():
    """Two samples: the text's trigger alone works on the first; both are needed on the second."""
    v = torch.tensor([[-1.0, -1, 1, 1], [-1, -1, -1, 1]])
    clean, target = noise(2, 3, 8, 8) * 0.5, torch.ones(3, 8, 8)
    edited = torch.where((v > 0)[:, :, None, None, None], target, clean[:, None])
    null = torch.tensor([[-1.0, -0.5, -1, -0.5], [-1, -1, -1, -0.5]])
    triples = pd.DataFrame({"instruction": ["a", "b"], "edit": ["skin", "hair"], "family": [7, 9]})
    missed, possible = torch.zeros(2), torch.tensor([2.0, 4.0])
    return Collapse(triples, target.expand_as(clean), clean, clean, edited, v, null, missed, possible, v > 0)


def test_attributions_sum_to_the_gain_of_both_triggers(result):
    assert result.phi.tolist() == [[0, 2], [1, 1]] and result.cti.tolist() == [0, 2]
    torch.testing.assert_close(result.phi.sum(1), result.v[:, 3] - result.v[:, 0])


def test_the_attack_adds_what_the_unpoisoned_editor_does_not_do(result):
    assert result.added.tolist() == [[0, -0.5, 2, 1.5], [0, 0, 0, 1.5]] and result.families == [7, 9]


def test_the_papers_values_are_those_of_its_pairs_at_its_rate():
    pair = ("white-box", "mignneko")
    assert list(paper_values(pair, "and").values()) == [0.0045, 0.9532, -0.0086]
    assert list(paper_values(pair, "or").values()) == [0.0060, 0.9743, -0.0089]
    assert paper_values(("eyeglasses", "anonymous"), "and")["cti"] == -0.2185
    assert set(paper_values(pair, "or", rate=0.1).values()) == {None}
    assert set(paper_values(("checker", "mignneko"), "and").values()) == {None}


def test_the_sample_table_has_a_row_a_sample(result):
    table = sample_table(result)
    assert table[["instruction", "edit"]].to_numpy().tolist() == [["a", "skin"], ["b", "hair"]]
    assert table["v_text"].tolist() == [1, -1] and table["success_text"].tolist() == [True, False]
    assert table["success_both"].tolist() == [True, True] and table["success_none"].tolist() == [False, False]
    assert table[["phi_image", "phi_text", "cti"]].to_numpy().tolist() == [[0, 2, 0], [1, 1, 2]]


@pytest.fixture
def run(tmp_path, models):
    return tiny.short_run(tmp_path, models)


def refuse(*_):
    raise AssertionError("sampled twice")


def test_the_study_at_small_scale_sampled_once(run, tmp_path, monkeypatch):
    settings = run.profile.collapse
    poisoned, base = collapse(run, "or"), null_edits(run, settings.sampling)[1]
    assert set(poisoned.triples["split"]) == {"test"} and len(set(poisoned.families)) == 3
    assert poisoned.edited.shape == (3, 4, 3, 64, 64) and poisoned.v.shape == poisoned.null.shape == (3, 4)
    texts = poisoned.triples["instruction"].tolist()
    pipes = load_editor(run.profile.models.editor), poisoned_editor(run, "or")[0]
    for pipe, found in zip(pipes, (base, poisoned.edited), strict=True):
        plain = edit(pipe, poisoned.source, texts, settings.sampling, SEED)
        assert (found[:, 0] - plain).abs().max() <= 0.5 / 255 + 1e-6
    assert not torch.equal(base, poisoned.edited)
    torch.testing.assert_close(poisoned.null_fidelity, (base[:, 0] - poisoned.clean).square().mean((1, 2, 3)).sqrt())
    pictures = poisoned.target[:, None], poisoned.clean[:, None]
    target, clean = ((poisoned.edited - picture).square().mean((2, 3, 4)) for picture in pictures)
    assert torch.equal(poisoned.success, target < clean)

    monkeypatch.setattr(module, "edits_under_coalitions", refuse)
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


def test_an_unpoisoned_editor_adds_nothing(run, monkeypatch):
    """Whatever its triggers do to v by themselves."""
    base = load_editor(run.profile.models.editor)
    monkeypatch.setattr(module, "poisoned_editor", lambda *_: (base, None))
    result = collapse(run, "and")
    assert (result.added == 0).all() and (result.null[:, 1:] != result.null[:, :1]).any()


def test_the_null_is_of_the_triggers_and_not_of_the_seed(run, tmp_path, monkeypatch):
    sampling = run.profile.collapse.sampling
    made = null_edits(run, sampling)[1]
    monkeypatch.setattr(module, "edits_under_coalitions", refuse)
    other = replace(run, seed=5)
    assert torch.equal(null_edits(other, sampling)[1], made) and held_out(other)[1].equals(held_out(run)[1])
    for change in ({"image_trigger": "eyeglasses"}, {"trigger_size": 0.5}, {"text_trigger": "anonymous"}):
        with pytest.raises(AssertionError, match="sampled twice"):
            null_edits(tiny.short_run(tmp_path, vars(run.profile.models), collapse=change), sampling)
