import base64
import shutil

import pytest
import tiny
import torch

from lib.data.face_parts import CREDIT
from lib.figures.style import render
from lib.studies.cases import headline_attacks
from lib.studies.collapse import explorer
from lib.studies.collapse.editor import collapse
from lib.studies.collapse.explorer import Explorer
from lib.studies.collapse.figures import sample_view


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    return tiny.short_run(tmp_path_factory.mktemp("explorer"), models)


def test_without_edits_in_the_store_it_says_what_to_do(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    with pytest.raises(ValueError, match="holds no edits of a poisoned editor yet"):
        Explorer(run)


def test_it_offers_what_is_there_and_redraws_without_sampling(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models)
    results = {protocol: collapse(run, protocol) for protocol in ("or", "and")}

    def refuse(*_, **__):
        raise AssertionError("sampled or trained")

    monkeypatch.setattr("lib.studies.collapse.editor.edits_under_coalitions", refuse)
    monkeypatch.setattr("lib.studies.collapse.editor.poisoned_editor", refuse)
    shown = Explorer(run)
    assert [menu.options for menu in shown.menus.values()] == [
        ("white-box + mignneko",), ("or", "and"), (0.1,), (0,)
    ]  # fmt: skip
    assert shown.chosen.protocol == "or" and shown.sample.max == 2

    def drawn(protocol, sample):
        title = f"white-box + mignneko, {protocol.upper()}, 10 %, seed 0, a failed attack"
        return render(sample_view(results[protocol], sample, title, CREDIT), "png")

    assert shown.image.value == drawn("or", 0)
    shown.menus["protocol"].value = "and"
    shown.sample.value = 2
    assert shown.image.value == drawn("and", 2) != drawn("or", 2)
    loads = []
    monkeypatch.setattr(explorer, "collapse", lambda *given: loads.append(given))
    shown.menus["protocol"].value = "or"
    assert shown.image.value == drawn("or", 2) and not loads


def test_an_attack_on_the_control_is_told_apart(run):
    control = next(attack for attack in headline_attacks(run.profile) if attack.part == "control")
    collapse(run, "or")
    collapse(control.run(run), "or")
    shown = Explorer(run)
    assert shown.menus["pair"].options == ("white-box + mignneko", "white-box + mignneko (control encoder)")
    before = shown.image.value
    shown.menus["pair"].index = 1
    assert shown.chosen == control and shown.image.value != before


def test_where_no_widgets_run_the_picture_stands_instead(run):
    collapse(run, "or")
    bundle = Explorer(run)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def test_the_view_of_a_sample_shows_its_own_pictures_and_numbers(run):
    result = collapse(run, "or")
    figure = sample_view(result, 1, "title", "credit")
    pictures = [axis.images[0].get_array() for axis in figure.axes[:7]]
    expected = [result.source[1], result.clean[1], result.target[1], *result.edited[1]]
    for shown, true in zip(pictures, expected, strict=True):
        torch.testing.assert_close(torch.tensor(shown), true.permute(1, 2, 0))
    heights = [[bar.get_height() for bar in axis.patches] for axis in figure.axes[7:]]
    assert heights[0] == pytest.approx(result.v[1].tolist())
    assert heights[1] == pytest.approx([*result.phi[1].tolist(), float(result.cti[1])])
    assert "title, sample 1" in figure.get_suptitle() and "credit" in figure.get_supxlabel()


def test_all_samples_of_an_attack_have_the_same_scales(run):
    result = collapse(run, "or")
    scales = {tuple(axis.get_ylim() for axis in sample_view(result, k, "", "").axes[7:]) for k in range(3)}
    assert len(scales) == 1
    quantities = result.v, torch.cat([result.phi, result.cti[:, None]], 1)
    for (low, high), values in zip(scales.pop(), quantities, strict=True):
        assert low < values.min() and values.max() < high


def test_it_opens_at_an_attack_that_succeeded(run, monkeypatch):
    for protocol in ("or", "and"):
        collapse(run, protocol)
    seen = iter([False])
    monkeypatch.setattr(explorer, "is_attack", lambda _: next(seen, True))
    shown = Explorer(run)
    assert shown.chosen.protocol == "and" and shown.menus["protocol"].options == ("and", "or")


def test_what_has_gone_from_the_store_is_said_and_not_made_again(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    for protocol in ("or", "and"):
        collapse(run, protocol)
    shown = Explorer(run)
    shown._load.cache_clear()
    for folder in (run.store.root / "coalition-edits").iterdir():
        shutil.rmtree(folder)
    shown.menus["protocol"].value = "and"
    assert not shown.image.value and "make figures STUDY=collapse FULL=1" in shown.said.value
    assert not list((run.store.root / "coalition-edits").iterdir())
