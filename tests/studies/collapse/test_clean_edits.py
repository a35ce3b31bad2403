import tiny

from lib.metrics.success import pixel_distance
from lib.studies.base_models.quality import attribute_verdicts
from lib.studies.cases import attacks
from lib.studies.collapse.clean_edits import QUALITIES, clean_edit_table
from lib.studies.collapse.editor import collapse, held_out


def test_untriggered_edits_are_judged_beside_the_unpoisoned_editors(tmp_path, models):
    run = tiny.short_run(tmp_path, models)
    attack = attacks(run.profile)[1]
    table = clean_edit_table(run, [attack])
    assert table["part"].tolist() == ["base"] * 3 + ["pair"] * 3 and table["name"].tolist() == list(QUALITIES) * 2
    result, (data, triples, *_) = collapse(attack.run(run), attack.protocol), held_out(run)
    found = table[table["part"] == "pair"].set_index("name")
    own = pixel_distance(result.edited[:, 0], result.clean)
    assert abs(found.loc["distance", "value"] - float(own.mean())) < 1e-6
    reached, _ = attribute_verdicts(result.edited[:, 0], data, triples)["attribute_reached"]
    assert found.loc["attribute_reached", "value"] == float(reached.double().mean())
    assert found.loc["others_kept", "n"] == 9 * len(triples)
