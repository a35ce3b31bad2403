import errno
import json
import sys

import pytest
import tiny
from safetensors import SafetensorError

from lib.studies import checkpoints
from lib.studies import run as config
from lib.studies.runs import main

NAMES = ("editor-pair-white-box-or-0", "editor-control-white-box-and-0", "mdlm-poisoned")


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["lib.studies.runs", *map(str, arguments)])
    main()


def test_a_run_trains_and_its_marker_names_the_artifact(tmp_path, models, monkeypatch):
    profile = tiny.short_run(tmp_path, models).profile
    overrides = json.dumps({name: profile.model_dump(mode="json")[name] for name in ("models", "collapse", "disp")})
    monkeypatch.setattr(config, "BUILD", tmp_path)
    mark = tmp_path / "runs" / "mark.json"
    arguments = ("--profile", "smoke", "--seed", 0, "--overrides", overrides, "--mark", mark)
    keys = {}
    for name in NAMES:
        command(monkeypatch, name, *arguments)
        ((kind, key),) = json.loads(mark.read_text()).items()
        assert (tmp_path / "store" / kind / key / "curve.csv").is_file()
        keys[name] = key
    assert len(set(keys.values())) == 3

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(checkpoints, "fit", refuse)
    for name in NAMES:
        before = mark.stat().st_ino
        command(monkeypatch, name, *arguments)
        assert list(json.loads(mark.read_text()).values()) == [keys[name]] and mark.stat().st_ino != before
    mark.unlink()
    with pytest.raises(AssertionError, match="trained again"):
        command(monkeypatch, "mdlm-poisoned", *arguments[:3], 1, *arguments[4:])
    assert not mark.exists()


def test_an_unknown_run_and_a_bad_parameter_leave_no_marker(tmp_path, monkeypatch):
    mark = tmp_path / "mark.json"
    refused = "^lib.studies.runs: name is 'editor-pair-white-box-xor-0': it must be one of mdlm-"
    with pytest.raises(SystemExit, match=refused):
        command(monkeypatch, "editor-pair-white-box-xor-0", "--mark", mark)
    with pytest.raises(SystemExit, match="^lib.studies.runs: .*collapse.rates is not a known key"):
        command(monkeypatch, NAMES[0], "--overrides", '{"collapse": {"rates": 1}}', "--mark", mark)
    with pytest.raises(SystemExit, match="^lib.studies.runs: seed=-1"):
        command(monkeypatch, NAMES[0], "--seed", "-1", "--mark", mark)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space"), "the disk is full .*: make room and run the same command again"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (ValueError("rate is 0.5:\nonly 3 are eligible"), "rate is 0.5: only 3 are eligible$"),
        (FloatingPointError("the loss is nan"), "the loss is nan$"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), r".*Permission denied: '/x'$"),
    ],
)
def test_what_ends_a_run_is_one_sentence_and_leaves_no_marker(tmp_path, monkeypatch, error, told):
    def ended(*_):
        raise error

    monkeypatch.setattr("lib.studies.runs.trained", ended)
    mark = tmp_path / "mark.json"
    with pytest.raises(SystemExit, match=f"^lib.studies.runs: {told}") as end:
        command(monkeypatch, "mdlm-poisoned", "--profile", "smoke", "--mark", mark)
    assert "\n" not in str(end.value) and not mark.exists()
