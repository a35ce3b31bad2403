import pandas as pd
import pytest

from lib.studies.disp.claims import claims
from lib.studies.disp.outcomes import METRICS


def main(after, kept, rival=(0.0, 0.9)):
    values = {"no defence": (1.0, 0.8), "DiSP": (after, 0.8 * kept), "rival": rival}
    rows = [(name, metric, value) for name, pair in values.items()
            for metric, value in zip((METRICS[0], METRICS[2]), pair, strict=True)]
    return pd.DataFrame(rows, columns=["defence", "metric", "value"])


def rates(low):
    rows = [(0.0, "no defence", 0.0), (0.01, "no defence", low), (0.01, "DiSP", 0.2), (0.1, "no defence", 1.0)]
    rows += [(0.1, "DiSP", 0.01)]
    table = pd.DataFrame(rows, columns=["rate", "defence", "value"]).assign(metric=METRICS[0], seeds=3)
    learnt = table["rate"].map({0.0: 0, 0.01: 2 if low >= 0.9 else 0, 0.1: 3})
    return table.assign(attacks=learnt, highest=table["value"] + 0.05)


def measures(relative):
    rows = [("description", "directional (DiSP)", 0.45, relative), ("description", "random", 0.45, 1.0)]
    rows += [("description", "directional (DiSP)", 0.3, 1.0)]
    return pd.DataFrame(rows, columns=["measure", "method", "ratio", "relative"])


@pytest.mark.parametrize(
    ("after", "kept", "relative", "verdicts"),
    [(0.01, 0.95, 0.99, ["holds"] * 3), (0.2, 0.8, 0.9, ["does not hold here"] * 3)],
)
def test_each_claim_is_judged_by_its_own_number(after, kept, relative, verdicts):
    text = claims(main(after, kept), rates(0.5), measures(relative), 0.1)
    found = [sentence for sentence in text.split(". ") if "claimed" in sentence]
    assert [sentence.rstrip(".").rsplit(": ", 1)[1] for sentence in found] == verdicts
    assert f"keeps {kept:.1%}" in text and f"costs the base model {1 - relative:.1%} of facts" in text


def test_rates_without_an_attack_are_judged_by_no_defence():
    text = claims(main(0.0, 1.0), rates(0.5), measures(1.0), 0.1)
    assert "Of the poison rates 1 %, 10 % an attack at 10 % (3 of 3 seeds); after DiSP the highest" in text
    assert "ASR of these is 0.060." in text
    assert "at 1 % (2 of 3 seeds), 10 % (3 of 3 seeds); after DiSP the highest ASR of these is 0.250" in claims(
        main(0.0, 1.0), rates(0.95), measures(1.0), 0.1
    )


def test_what_cleans_as_well_and_keeps_more_is_named():
    assert "more of the clean performance left: rival." in claims(main(0.0, 0.9), rates(1.0), measures(1.0), 0.1)
    assert "rival" not in claims(main(0.0, 0.9, (0.5, 1.0)), rates(1.0), measures(1.0), 0.1)


def test_without_measures_the_third_claim_is_not_judged():
    assert "Masking" not in claims(main(0.0, 0.9), rates(1.0), measures(1.0).iloc[:0], 0.1)
