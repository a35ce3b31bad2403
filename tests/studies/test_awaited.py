from dataclasses import replace

import pytest
import tiny

from lib.studies import awaited
from lib.studies.awaited import check_asked
from lib.studies.collapse.editor import collapse


@pytest.fixture
def run(tmp_path, models):
    return replace(tiny.short_run(tmp_path, models), notebook="03_collapse_analysis")


def test_trainings_are_begun_only_where_a_folder_is_named(run):
    check_asked(run, "figures")
    with pytest.raises(ValueError, match=r"out=None: 0 of \d+ trainings are in the store, not editor-"):
        check_asked(run, None)


def test_the_committed_figures_are_shown_before_anything_is_refused(run, monkeypatch):
    shown = []
    monkeypatch.setattr(awaited, "display", lambda *things: shown.extend(things))
    check_asked(run, "figures")
    assert not shown
    with pytest.raises(ValueError, match="in about [0-9]+ h of one core"):
        check_asked(run, None)
    pictures = [thing for thing in shown if isinstance(thing, awaited.Image)]
    assert len(pictures) == len(list((awaited.COMMITTED / run.notebook).glob("*.png"))) > 0


def test_what_is_there_is_counted(run, monkeypatch):
    first = {name: each for name, each in awaited.profile_runs(run.profile).items() if name.startswith("editor-")}
    name, (study, attack) = next(iter(first.items()))
    monkeypatch.setattr(awaited, "profile_runs", lambda _: {name: (study, attack)})
    with pytest.raises(ValueError, match=f"0 of 1 trainings are in the store, not {name}"):
        check_asked(run, None)
    collapse(attack.run(run), attack.protocol)
    check_asked(run, None)
