import os
import time

import pytest

from lib.studies.clock import AHEAD, check_clock, settle


def dated(path, seconds):
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    os.utime(path, (time.time() + seconds,) * 2)
    return path


def test_a_source_of_a_time_to_come_is_refused_by_name(tmp_path):
    fine = [str(dated(tmp_path / "past.py", -1e6)), str(dated(tmp_path / "now.py", AHEAD / 2))]
    check_clock(fine)
    check_clock([])
    check_clock([str(tmp_path / "nowhere.py")])
    ahead = str(dated(tmp_path / "ahead.py", 2 * AHEAD))
    with pytest.raises(ValueError, match=rf"{ahead} is of .*: set the clock, or touch the file"):
        check_clock([*fine, ahead])


def test_what_was_made_in_the_future_was_made_now(tmp_path):
    past, ahead = dated(tmp_path / "a" / "past", -1e6), dated(tmp_path / "b" / "ahead", 1e6)
    before, now = past.stat().st_mtime, time.time()
    alone, other = dated(tmp_path.with_name("alone"), 1e6), dated(tmp_path.with_name("other"), 1e6)
    settle([str(tmp_path), str(alone), str(tmp_path / "nowhere")])
    assert alone.stat().st_mtime < other.stat().st_mtime - 1e5
    assert past.stat().st_mtime == before and ahead.stat().st_mtime == pytest.approx(now, abs=AHEAD)
