"""Folders are told apart by what they hold, and large ones are read once."""

import json
import os

import pytest

from lib.runtime import digests
from lib.runtime.digests import folder_digest


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A folder whose digests are kept, as if it were large; which files are read, in order."""
    monkeypatch.setattr(digests, "BUILD", tmp_path / "build")
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "SETTLED", 0)
    read, plain = [], digests.file_digest
    monkeypatch.setattr(digests, "_read", lambda file, state: read.append(file.name) or plain(file))
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/a.png"):
        (folder / name).write_bytes(f"picture {name}".encode())
    return folder, read


def test_a_folders_digest_is_of_its_files_names_and_contents_but_its_cards(tmp_path):
    """Whether it was asked for before or not."""
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "weights"
    file.write_bytes(b"one")
    digests = [folder_digest(tmp_path / "a")]
    (tmp_path / "a" / "README.md").write_text("a card")
    assert folder_digest(tmp_path / "a") == digests[0]
    file.write_bytes(b"two, longer")
    digests.append(folder_digest(tmp_path / "a"))
    file.rename(tmp_path / "a" / "other")
    digests += [folder_digest(tmp_path / "a"), folder_digest("org/name@1"), folder_digest("org/name@2")]
    assert len(set(digests)) == len(digests)
    (tmp_path / "a" / "other").rename(file)
    assert folder_digest(tmp_path / "a") == digests[1]


def test_only_what_has_changed_in_a_large_folder_is_read_again(large):
    folder, read = large
    before = folder_digest(folder)
    assert sorted(read) == ["a.png", "a.png", "b.png"]
    read.clear()
    assert folder_digest(folder) == before and not read
    content, times = (folder / "b.png").read_bytes(), (folder / "b.png").stat()
    (folder / "b.png").write_bytes(content[::-1])
    os.utime(folder / "b.png", ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time of change
    assert folder_digest(folder) != before and read == ["b.png"]
    (folder / "b.png").write_bytes(content)
    (folder / "new.png").write_bytes(b"new")
    folder_digest(folder)
    (folder / "new.png").unlink()
    assert folder_digest(folder) == before


def test_the_kept_digests_are_those_of_a_folder_that_is_read_whole(large, monkeypatch):
    folder, _ = large
    kept = [folder_digest(folder), folder_digest(folder)]
    monkeypatch.setattr(digests, "LARGE", 10**9)
    assert kept == [folder_digest(folder)] * 2


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"a.png": 1}', '{"a.png": [[0, 0, 0], "no digest"]}'])
def test_a_damaged_list_of_digests_is_made_again(large, damage):
    folder, read = large
    before = folder_digest(folder)
    (kept,) = (digests.BUILD / "digests").iterdir()
    kept.write_text(damage)
    read.clear()
    assert folder_digest(folder) == before and len(read) == 3
    assert set(json.loads(kept.read_text())) == {"a.png", "b.png", "deep/a.png"}


def test_a_file_that_has_just_changed_is_not_kept(large, monkeypatch):
    """Where times are coarse, it may change again without another one."""
    folder, read = large
    monkeypatch.setattr(digests, "SETTLED", 10**12)
    folder_digest(folder)
    read.clear()
    folder_digest(folder)
    assert len(read) == 3
