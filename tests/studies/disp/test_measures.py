import pytest
import tiny

from lib.studies.disp import measures
from lib.studies.disp.measures import COLUMNS, MEASURES, clean_measures, measure_curves, word
from lib.studies.run import with_profile


def test_what_is_chosen():
    assert [word(said) for said in ("no, the hair is red", "yes", " no ", "")] == ["no", "yes", "no", ""]


def test_both_measures_at_every_ratio_beside_what_is_guessed(tmp_path, models, monkeypatch):
    run = tiny.short_run(tmp_path, models, disp={"ratios": [0.0, 0.5]})

    def said(mdlm, data, threshold, masked, work):
        wrong = bool(masked.any())
        return [("maybe" if wrong and k % 2 else text) for k, text in enumerate(data.answers)]

    monkeypatch.setattr(measures, "answer", said)
    table = clean_measures(run)
    assert list(table) == COLUMNS and len(table) == 2 * 2 * 2
    assert table["measure"].unique().tolist() == list(MEASURES.values())
    masked, whole = table[table["ratio"] == 0.5], table[table["ratio"] == 0]
    assert (whole["value"] == 1).all() and masked["value"].tolist() == pytest.approx([0.5] * 4)
    assert (table["relative"] == table["value"]).all()
    facts, choice = (table[table["measure"] == name] for name in MEASURES.values())
    assert facts["blind"].isna().all() and choice["blind"].between(0, 1).all()
    assert set(facts["n"]) == {60} and set(choice["n"]) == {6}
    assert "without looking" in measure_curves(table).get_supxlabel()
    monkeypatch.setattr(measures, "answer", None)
    assert clean_measures(run)["value"].equals(table["value"])


def test_other_data_than_faces_have_no_such_measures(tmp_path, models):
    run = with_profile(tiny.short_run(tmp_path, models), {"data": {"questions": "easy-vqa"}})
    assert clean_measures(run).empty
