import pandas as pd

from lib.studies.further import Part, gathered


def part(key, further, here, value, calls=None):
    def rows():
        if calls is not None:
            calls.append(key)
        return pd.DataFrame({"value": [value, value + 1], "note": [None, "x"]})

    return Part(key, further, here, rows)


def test_what_is_further_is_read_where_its_key_is_the_same(tmp_path):
    committed, calls = tmp_path / "rows.csv", []
    plain = gathered([part("a", False, False, 0.1), part("b", True, False, 0.3, calls)], committed)
    assert plain["key"].tolist() == ["a", "a"] and set(plain["made"]) == {"here"} and not calls
    assert not committed.exists()
    full = gathered([part("a", False, False, 0.1), part("b", True, True, 1 / 3, calls)], committed)
    assert calls == ["b"] and full["value"].tolist() == [0.1, 1.1, 1 / 3, 4 / 3] and set(full["made"]) == {"here"}
    written = committed.read_bytes()
    read = gathered([part("a", False, False, 0.1), part("b", True, False, 9.0, calls)], committed)
    assert calls == ["b"] and read["value"].equals(full["value"])
    assert read["made"].tolist() == ["here", "here", "FULL=1", "FULL=1"] and committed.read_bytes() == written
    other = gathered([part("a", False, False, 0.1), part("c", True, False, 9.0)], committed)
    assert other["key"].tolist() == ["a", "a"] and committed.read_bytes() == written


def test_rows_that_no_longer_hold_leave_the_file_when_it_is_written(tmp_path):
    committed = tmp_path / "rows.csv"
    gathered([part("old", True, True, 0.0)], committed)
    gathered([part("new", True, True, 0.0)], committed)
    assert set(pd.read_csv(committed)["key"]) == {"new"}
    assert gathered([], committed).empty
