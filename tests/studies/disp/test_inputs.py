import pytest
import tiny
import torch
from sklearn.metrics import roc_auc_score

from lib.defences import suspicion
from lib.studies.attacks.mdlm import poisoned_mdlm, test_questions
from lib.studies.disp import inputs as trigger_inputs
from lib.studies.disp.defended import clean_share
from lib.studies.disp.inputs import input_detection
from lib.studies.disp.purification import scoring
from lib.tasks.questions import Questions

test_questions.__test__ = False


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    return tiny.short_run(tmp_path_factory.mktemp("inputs"), models)


def test_concentration_of_known_saliency(run, monkeypatch):
    mdlm = poisoned_mdlm(run)[0]
    data: Questions = test_questions(run, mdlm, 2)[0]
    even, peaked = torch.ones(64), torch.zeros(64).index_fill(0, torch.tensor([5]), 3.0)
    monkeypatch.setattr(suspicion, "directional", lambda *_, **__: torch.stack([even, peaked]))
    how = {"threshold": run.profile.disp.threshold} | scoring(run)
    found = suspicion.input_scores(mdlm, data, clean_share(run, mdlm), **how)
    assert found["saliency, top share"].tolist() == pytest.approx([1 / 64, 1])
    assert found["saliency, entropy"].tolist() == pytest.approx([-torch.tensor(64.0).log().item(), 0])
    assert all(scores.shape == (2,) and bool(scores.isfinite().all()) for scores in found.values())


def test_areas_tell_triggered_from_clean_and_come_from_the_store(run, monkeypatch):
    def scores(mdlm, data, clean, **numbers):
        assert len(clean) == round(0.05 * run.profile.disp.questions)
        assert numbers == {"threshold": run.profile.disp.threshold} | scoring(run)
        hit = bool((data.features[data.picture] == triggered.features[triggered.picture]).all())
        return {"told": torch.arange(6.0) + 3 * hit, "blind": torch.ones(6)}

    triggered = test_questions(run, poisoned_mdlm(run)[0], 6)[1]
    monkeypatch.setattr(trigger_inputs, "input_scores", scores)
    table = input_detection(run).set_index("score")
    truth, values = [0] * 6 + [1] * 6, [*range(6), *range(3, 9)]
    assert table["auroc"].to_dict() == pytest.approx({"told": roc_auc_score(truth, values), "blind": 0.5})
    assert set(table["n"]) == {12} and set(table["n_poisoned"]) == {6}
    monkeypatch.setattr(trigger_inputs, "input_scores", None)
    assert input_detection(run).set_index("score").equals(table)
