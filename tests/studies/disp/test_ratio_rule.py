import pandas as pd
import pytest
import tiny
import torch

from lib.defences import ratio_rule, self_purification
from lib.defences.ratio_rule import chosen_ratio
from lib.models.decoding import Decoded
from lib.studies.attacks.mdlm import poisoned_mdlm
from lib.studies.disp.ratio_rule import ratio_gains

PLAIN = [[1, 1], [2, 2], [3, 3], [4, 4]]


def test_gain_is_what_changes_and_stays_sure_less_what_is_unsure(tmp_path, models, monkeypatch):
    settings = {"ratios": [0.25, 0.5]}
    run = tiny.short_run(tmp_path, models, disp=settings)
    run = type(run)(
        run.profile.model_copy(update={"disp_grid": run.profile.disp_grid.model_copy(update={"rule_questions": 4})}),
        run.seed, run.device, run.out, run.store,
    )  # fmt: skip
    mdlm = poisoned_mdlm(run)[0]

    def respond(model, data, threshold, masked=None, label="", work=None):
        share = 0.0 if masked is None else float(masked.float().mean())
        tokens, sure = torch.tensor(PLAIN), torch.ones(4, 2, dtype=torch.float64)
        if share == 0.25:
            tokens[0] = 9  # changed and sure
            sure[1, 1] = 0.5  # unsure, not changed
        if share == 0.5:
            tokens[:2] = 9
            sure[1:] = 0.5
        return Decoded(tokens, sure)

    for module in (ratio_rule, self_purification):
        monkeypatch.setattr(module, "respond", respond)
    table = ratio_gains(run, mdlm).set_index("ratio")
    assert table["changed_sure"].to_dict() == {0.0: 0, 0.25: 0.25, 0.5: 0.25}
    assert table["unsure"].to_dict() == {0.0: 0, 0.25: 0.25, 0.5: 0.75}
    assert table["gain"].to_dict() == {0.0: 0, 0.25: 0, 0.5: -0.5} and set(table["n"]) == {4}
    assert (table["gain_low"] <= table["gain"]).all() and (table["gain"] <= table["gain_high"]).all()


@pytest.mark.parametrize(("gains", "best"), [([0, 0.1, 0.05], 0.02), ([0, -0.1, -0.2], 0.0), ([0, 0.1, 0.1], 0.02)])
def test_the_greatest_gain_is_chosen_and_the_smallest_of_equals(gains, best):
    assert chosen_ratio(pd.DataFrame({"ratio": [0.0, 0.02, 0.05], "gain": gains})) == best
