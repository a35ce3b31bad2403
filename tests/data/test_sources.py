"""Where data sets come from: folders, pinned snapshots, and a hub that is not there."""

import time

import photos
import pytest
from huggingface_hub import constants

from lib.data import load_edits, load_llava, load_mmmu
from lib.data.sources import dataset_folder, dealt

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOADERS = {
    "edits": lambda name, revision: load_edits(name, 32, revision=revision),
    "llava": lambda name, revision: load_llava(name, "train", 32, revision=revision),
    "mmmu": lambda name, revision: load_mmmu(name, 32, revision=revision),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("reason", ["offline", "unreachable"])
def test_a_hub_that_cannot_be_reached_is_one_sentence_that_says_what_to_run(tmp_path, monkeypatch, loader, reason):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", reason == "offline")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client tries again and again
    with pytest.raises(ValueError) as refusal:
        LOADERS[loader]("someone/data", COMMIT)
    message = str(refusal.value)
    assert "\n" not in message and len(message) < 700
    assert f"hf download someone/data --repo-type dataset --revision {COMMIT} --include" in message
    assert "name that folder in the profile" in message


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7], COMMIT + "0"])
def test_a_hub_data_set_needs_a_commit(revision):
    with pytest.raises(ValueError, match="must be a commit, 40 hexadecimal digits, and if a local folder is meant"):
        dataset_folder("someone/data", revision, ["*.parquet"])


@pytest.mark.parametrize("name", ["", "data set", "/nowhere/at/all", "a/b/c", "../not-there"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must be a folder that exists or a hub id such as 'MMMU/MMMU'"):
        dataset_folder(name, COMMIT, ["*.parquet"])


def test_a_local_folder_comes_before_the_hub(tmp_path, monkeypatch):
    photos.mmmu_folder(tmp_path / "MMMU" / "MMMU")
    monkeypatch.chdir(tmp_path)
    assert dataset_folder("MMMU/MMMU", None, ["*.parquet"]).resolve() == tmp_path / "MMMU" / "MMMU"
    assert len(load_mmmu("MMMU/MMMU", 32).table) == 3


def test_a_cached_snapshot_needs_no_network(tmp_path, monkeypatch):
    """The hub's cache, as a download leaves it, serves the pinned commit offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "datasets--someone--data" / "snapshots" / COMMIT
    photos.edit_parquet(snapshot / "data" / "train-00000-of-00001.parquet")
    assert len(load_edits("someone/data", 32, revision=COMMIT).triples) == len(photos.EDITS)


def test_names_are_dealt_by_themselves_in_the_asked_share():
    names = [f"{k}.jpg" for k in range(4000)]
    held = {name for name in names if dealt(name, 0.1) == "test"}
    assert 320 < len(held) < 480  # 400 expected, 4.2 standard deviations
    assert {name for name in names if dealt(name, 0.2) == "test"} > held
    assert {dealt(name, 0.0) for name in names} == {"train"} and {dealt(name, 1.0) for name in names} == {"test"}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=f"held_out={share} must be a share from 0 to 1"):
        dealt("a", share)
