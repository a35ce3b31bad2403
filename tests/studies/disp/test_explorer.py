import pytest
import tiny
import torch

from lib.saliency.by_name import directional
from lib.saliency.masking import mask_top
from lib.studies.attacks.mdlm import poisoned_mdlm, test_questions
from lib.studies.disp.explorer import DispExplorer, answer_steps
from lib.studies.disp.purification import scoring
from lib.tasks.questions import answer

test_questions.__test__ = False


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    return tiny.short_run(tmp_path_factory.mktemp("explorer"), models)


def test_without_a_model_in_the_store_it_says_what_to_do(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    with pytest.raises(ValueError, match="holds no poisoned MDLM yet"):
        DispExplorer(run)


def test_the_steps_end_in_the_answer_and_only_ever_settle_tokens(run):
    mdlm = poisoned_mdlm(run)[0]
    data = test_questions(run, mdlm, 3)[1]
    masked = mask_top(directional(mdlm, data, **scoring(run)), 0.5)
    threshold = run.profile.disp.threshold
    for k in range(3):
        steps = answer_steps(mdlm, data[k : k + 1], masked[k : k + 1], threshold)
        (final,) = answer(mdlm, data[k : k + 1], threshold, masked=masked[k : k + 1])
        assert set(steps[0].split()) == {"_"} and "_" not in steps[-1].split()
        assert steps[-1].split()[:1] == final.replace(",", " ,").split()[:1]
        waiting = [step.split().count("_") for step in steps]
        assert waiting == sorted(waiting, reverse=True) and len(set(waiting)) == len(waiting)


def test_it_redraws_with_the_sliders_and_trains_nothing(run, monkeypatch):
    poisoned_mdlm(run)
    monkeypatch.setattr("lib.studies.checkpoints.fit", None)
    shown = DispExplorer(run)
    assert [menu.options for menu in shown.menus.values()] == [
        ("insertion",), ("checker",), (0.1,), ("triggered", "clean")
    ]  # fmt: skip
    pictures = [bytes(shown.image.value)]
    shown.question.value = 2
    pictures.append(bytes(shown.image.value))
    shown.ratio.value = 0.5
    pictures.append(bytes(shown.image.value))
    shown.menus["picture"].value = "clean"
    pictures.append(bytes(shown.image.value))
    assert len(set(pictures)) == 4 and all(bytes(picture).startswith(b"\x89PNG") for picture in pictures)
    shown.question.value, shown.ratio.value, shown.menus["picture"].value = 0, 0.0, "triggered"
    assert bytes(shown.image.value) == pictures[0]
    assert torch.is_tensor(shown._scores(shown.fields, 0))
