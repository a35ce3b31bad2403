import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy
import pandas
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.store import Store, write_atomic

ROOT = Path(__file__).parents[2]
SPEC = {"size": 32, "rate": 0.1, "names": ["a", "b"], "nested": {"on": True, "none": None}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def hello(path):
    (path / "deep").mkdir()
    (path / "deep" / "hello.txt").write_text("hello")
    (path / "empty").write_bytes(b"")


def never(*_):
    raise AssertionError("made although it was there")


def visible(root):
    """Everything below `root` but locks and empty folders."""
    return sorted(file for file in root.rglob("*") if file.is_file() and "locks" not in file.parts)


def child(code):
    """A Python process that runs `code` in the repository."""
    code = "import time\nfrom lib.runtime.store import Store\n" + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


# Keys


def test_key_ignores_the_order_of_mappings_only(store):
    turned = {"nested": {"none": None, "on": True}, "names": ("a", "b"), "rate": 0.1, "size": 32}
    assert store.key("picture", SPEC) == store.key("picture", turned)
    assert store.key("picture", SPEC) != store.key("picture", {**SPEC, "names": ["b", "a"]})
    assert store.key("picture", SPEC) != store.key("model", SPEC)


def test_key_is_the_hash_of_canonical_json():
    canonical = b'{"kind":"k","spec":{"a":[0.1],"b":1}}'
    assert Store("x").key("k", {"b": 1, "a": [0.1]}) == hashlib.sha256(canonical).hexdigest()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values), st.dictionaries(st.text(), json_values))
def test_keys_agree_exactly_when_specs_do(a, b):
    def written(spec):
        return json.dumps(spec, sort_keys=True)

    store = Store("x")
    assert store.key("k", json.loads(written(a))) == store.key("k", dict(reversed(a.items())))
    assert (store.key("k", a) == store.key("k", b)) == (written(a) == written(b))


@pytest.mark.parametrize(
    "a, b", [(0.1 + 0.2, 0.3), (1, 1.0), (1, True), (None, "None"), (1e-5, 1.1e-5), ([], {})]
)
def test_close_values_have_different_keys(store, a, b):
    assert store.key("k", {"x": a}) != store.key("k", {"x": b})


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "spec, message",
    [
        ({"train": {"rates": [0.1, float("nan")]}}, r"spec\.train\.rates\[1\] is nan, a float"),
        ({"x": float("-inf")}, r"spec\.x is -inf"),
        ({"out": Path("a")}, r"spec\.out is .*Path"),
        ({"x": torch.ones(2)}, r"spec\.x is tensor.*a Tensor"),
        ({"x": {1: 2}}, r"spec\.x has the key 1"),
        ({"x": {1, 2}}, r"spec\.x is \{1, 2\}, a set"),
        ({"x": b"a"}, r"spec\.x is b'a', a bytes"),
        ({"x": numpy.int64(1)}, r"spec\.x is .*a int64"),
        (["x"], "spec is a list"),
    ],
)
def test_spec_that_is_not_json_is_refused_by_field(store, spec, message):
    with pytest.raises(ValueError, match=message):
        store.folder("k", spec, never)


@pytest.mark.parametrize("kind", ["", "a/b", "..", ".hidden", "work", "locks", "a b"])
def test_kind_that_is_no_name_is_refused(store, kind):
    with pytest.raises(ValueError, match="kind is"):
        store.folder(kind, SPEC, never)


# Folders


def test_folder_is_made_once_and_found_again(store):
    path = store.folder("picture", SPEC, hello)
    assert (path / "deep" / "hello.txt").read_text() == "hello"
    assert json.loads((path / "spec.json").read_text()) == {"kind": "picture", "spec": SPEC}
    assert set(json.loads((path / "checksums.json").read_text())) == {"deep/hello.txt", "empty", "spec.json"}
    assert store.folder("picture", SPEC, never) == path
    assert Store(store.root).folder("picture", SPEC, never) == path
    assert store.folder("picture", {**SPEC, "size": 33}, hello) != path


def test_make_gets_an_empty_folder_and_a_failure_leaves_nothing(store):
    def fail(path):
        assert not list(path.iterdir())
        hello(path)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.folder("picture", SPEC, fail)
        assert visible(store.root) == []
    assert store.folder("picture", SPEC, hello).is_dir()


@pytest.mark.parametrize("name", [None, "spec.json", "checksums.json"])
def test_make_that_writes_nothing_or_a_reserved_name_is_refused(store, name):
    with pytest.raises(ValueError, match="make wrote"):
        store.folder("picture", SPEC, lambda path: name and (path / name).write_text("x"))
    assert visible(store.root) == []


def short_of(path, name):
    """The list of digests less one line."""
    digests = json.loads((path / "checksums.json").read_text())
    del digests[name]
    (path / "checksums.json").write_text(json.dumps(digests))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: (path / "deep" / "hello.txt").write_text("hellO"), "deep/hello.txt has changed"),
        (lambda path: (path / "empty").write_bytes(b"0"), "empty has changed"),
        (lambda path: (path / "deep" / "hello.txt").unlink(), "hello.txt is missing"),
        (lambda path: (path / "checksums.json").unlink(), "checksums.json is missing"),
        (lambda path: (path / "checksums.json").write_text('{"emp'), "checksums.json cannot be read"),
        (lambda path: (path / "checksums.json").write_text("[]"), "checksums.json cannot be read"),
        (lambda path: (path / "spec.json").write_text("{}"), "spec.json is another"),
        (lambda path: (path / "checksums.json").write_text("{}"), "deep/hello.txt is not of it"),
        (lambda path: short_of(path, "deep/hello.txt"), "deep/hello.txt is not of it"),
        (lambda path: short_of(path, "spec.json"), "spec.json is not of it"),
        (lambda path: (path / "deep" / "more.txt").write_text("more"), "deep/more.txt is not of it"),
        (lambda path: shutil.rmtree(path) or path.write_text("a file"), "checksums.json cannot be read"),
    ],
)
def test_damaged_artifact_is_reported_and_made_again(store, damage, reason):
    path = store.folder("picture", SPEC, hello)
    damage(path)
    with pytest.warns(UserWarning, match=f"damaged .{reason}.; it is made again"):
        assert Store(store.root).folder("picture", SPEC, hello) == path
    assert Store(store.root).folder("picture", SPEC, never) == path
    assert (path / "deep" / "hello.txt").read_text() == "hello"


def test_what_a_file_system_hides_in_a_folder_is_no_damage(store):
    path = store.folder("picture", SPEC, hello)
    (path / "deep" / ".DS_Store").write_bytes(b"icons")
    assert Store(store.root).folder("picture", SPEC, never) == path


def test_files_in_the_place_of_folders_are_in_nobodys_way(store):
    path = store.root / "picture" / store.key("picture", SPEC)
    work = store.root / "work" / "picture" / path.name
    for place in (path.with_name(f".{path.name}.tmp"), work):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a file")

    def make(folder):
        (store.work("picture", SPEC) / "part").write_text("half")
        hello(folder)

    assert (store.folder("picture", SPEC, make) / "deep" / "hello.txt").is_file() and not work.exists()


def test_folder_removed_during_a_session_is_made_again(store):
    path = store.folder("picture", SPEC, hello)
    path.rename(path.with_name("gone"))
    assert store.folder("picture", SPEC, hello).is_dir()


def test_artifacts_may_be_made_from_artifacts(store):
    def outer(path):
        inner = store.folder("inner", SPEC, hello)
        (path / "copy").write_text((inner / "deep" / "hello.txt").read_text())

    assert (store.folder("outer", SPEC, outer) / "copy").read_text() == "hello"


# Kills and races


def test_two_processes_make_it_once(tmp_path):
    code = f"""
        def make(path):
            open({str(tmp_path / "made")!r}, "a").write("made ")
            time.sleep(0.5)
            (path / "x").write_text("x")
        print(Store({str(tmp_path / "store")!r}).folder("k", {{"a": 1}}, make))
    """
    children = [child(code) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0] for process in children}
    assert [process.returncode for process in children] == [0, 0]
    assert len(paths) == 1
    assert (tmp_path / "made").read_text() == "made "


def test_kill_while_making_leaves_nothing_but_the_work(tmp_path):
    root = tmp_path / "store"
    process = child(f"""
        store = Store({str(root)!r})
        def make(path):
            (path / "x").write_text("half")
            (store.work("k", {{"a": 1}}) / "step").write_text("7")
            print("making", flush=True)
            time.sleep(60)
        store.folder("k", {{"a": 1}}, make)
    """)
    assert process.stdout.readline() == "making\n"
    process.kill()
    process.communicate()
    store = Store(root)
    assert not (root / "k" / store.key("k", {"a": 1})).exists()

    def make(path):
        assert not list(path.iterdir())
        assert (store.work("k", {"a": 1}) / "step").read_text() == "7"
        (path / "x").write_text("whole")

    path = store.folder("k", {"a": 1}, make)
    assert (path / "x").read_text() == "whole"
    assert sorted(file.name for file in visible(root)) == ["checksums.json", "spec.json", "x"]
    assert not list(store.work("k", {"a": 1}).iterdir())


def test_kill_at_any_moment_leaves_whole_or_nothing(tmp_path):
    """A process that makes artifact after artifact is killed at ten moments; whatever is visible is whole."""
    root = tmp_path / "store"
    for moment in range(10):
        process = child(f"""
            store = Store({str(root)!r})
            def make(path):
                for name in "ab":
                    (path / name).write_bytes(bytes(100_000))
            print("ready", flush=True)
            for number in range(10_000):
                store.folder("k", {{"moment": {moment}, "number": number}}, make)
        """)
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    made = [path for path in (root / "k").iterdir() if not path.name.startswith(".")]
    assert made
    for path in made:
        spec = json.loads((path / "spec.json").read_text())["spec"]
        assert Store(root).folder("k", spec, never) == path


def test_lock_of_a_process_that_forked_is_free_when_it_is_done(store):
    """A worker process that outlives `make` (a data loader's) does not keep the next one waiting."""
    workers = []

    def make(path):
        workers.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,)))
        workers[0].start()
        hello(path)

    store.folder("k", SPEC, make)
    Store(store.root).folder("k", SPEC, never)
    assert workers[0].is_alive()
    workers[0].kill()
    workers[0].join()


def test_stores_that_share_a_kind_by_a_link_make_its_artifact_once(tmp_path, monkeypatch):
    """As the tests' own stores share rendered faces: two processes that want the same ones wait for each other."""
    monkeypatch.setattr(tiny, "BUILD", tmp_path / "build")
    linked = [tiny.link_data(Store(tmp_path / name)) for name in ("one", "two")]
    log = tmp_path / "log"
    code = """
        def make(path):
            with open({log!r}, "a") as log:
                log.write("begun ")
                log.flush()
                time.sleep(1)
                log.write("done ")
            (path / "x").write_text("whole")
        print(Store({root!r}).folder("faces", {{"count": 4}}, make).resolve())
    """
    processes = [child(code.format(log=str(log), root=str(store.root))) for store in linked]
    told = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert log.read_text() == "begun done " and told == {str(next((tmp_path / "build/store/faces").iterdir()))}
    assert not [process for process in processes if process.returncode]


def test_command_under_a_lock_waits_for_the_one_before(tmp_path):
    lock, log = tmp_path / "lock", tmp_path / "log"
    line = f"echo start >> {log}; sleep 0.5; echo end >> {log}"
    command = [sys.executable, "-m", "lib.runtime.store", str(lock), "sh", "-c", line]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert log.read_text().split() == ["start", "end", "start", "end"]
    assert sorted(said) == ["", "another run is at work in this folder; waiting for it to end.\n"]


def test_command_under_a_lock_has_it_until_it_ends_itself(tmp_path):
    """No process stands before it that could be killed and leave it at work without the lock."""
    lock, line = str(tmp_path / "lock"), "echo $$; exec sleep 600"
    begin = [sys.executable, "-m", "lib.runtime.store", lock, "sh", "-c"]
    given = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([*begin, line], **given)
    assert int(first.stdout.readline()) == first.pid
    second = subprocess.Popen([*begin, "echo mine"], **given)
    assert second.stderr.readline() == "another run is at work in this folder; waiting for it to end.\n"
    assert second.poll() is None
    first.kill()
    assert second.communicate(timeout=60)[0] == "mine\n"
    first.communicate(timeout=60)


# Tensors and tables


def tensors():
    return {
        "bf16": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "expanded": torch.ones(1, 1).expand(2, 4),
        "none": torch.empty(0, 3, 64, 64, dtype=torch.uint8),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "learned": torch.nn.Parameter(torch.ones(2)),
    }


def test_tensors_come_back_bit_by_bit(store):
    made = tensors()
    found = store.tensors("t", SPEC, lambda: made)
    again = Store(store.root).tensors("t", SPEC, never)
    for name, tensor in made.items():
        for other in (found[name], again[name]):
            torch.testing.assert_close(other, tensor.detach(), rtol=0, atol=0, equal_nan=True)
            assert other.is_contiguous() and not other.requires_grad
    assert found.keys() == again.keys() == made.keys()


def test_tensors_that_share_memory_and_no_tensors_at_all(store):
    whole = torch.arange(8.0)
    found = store.tensors("t", {"shared": True}, lambda: {"whole": whole, "part": whole[2:4], "same": whole})
    assert found["part"].tolist() == [2, 3] and found["same"].tolist() == whole.tolist()
    assert store.tensors("t", {"shared": False}, dict) == {}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("made", [{"x": [1, 2]}, {1: torch.ones(1)}])
def test_what_is_no_named_tensor_is_refused(store, made):
    with pytest.raises(ValueError, match="allowed are named tensors"):
        store.tensors("t", SPEC, lambda: made)


def test_damaged_tensors_are_made_again(store):
    store.tensors("t", SPEC, tensors)
    file = store.root / "t" / store.key("t", SPEC) / "tensors.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.warns(UserWarning, match="tensors.safetensors has changed"):
        assert Store(store.root).tensors("t", SPEC, tensors).keys() == tensors().keys()


def test_table_comes_back_exactly(store):
    made = pandas.DataFrame(
        {
            "name": ["none", "None", "NA", 'a, "b"\nc', "é"],
            "value": [0.1 + 0.2, -1e-300, float("inf"), float("nan"), 1 / 3],
            "n": [1, 2, 3, 4, 2**53 + 1],
            "on": [True, False, True, True, False],
        }
    )
    for found in (store.table("t", SPEC, lambda: made), Store(store.root).table("t", SPEC, never)):
        pandas.testing.assert_frame_equal(found, made, check_exact=True)


def test_table_without_rows_keeps_its_columns(store):
    found = store.table("t", SPEC, lambda: pandas.DataFrame({"a": [], "b": []}))
    assert list(found) == ["a", "b"] and len(found) == 0


@pytest.mark.parametrize(
    "made",
    [
        pandas.DataFrame({"a": [1, 2]}, index=[5, 6]),
        pandas.DataFrame({"a": ["x", ""]}),
        pandas.DataFrame({"a": ["01", "02"]}),
        pandas.DataFrame(index=range(3)),
        pandas.DataFrame({0: [1.0]}),
    ],
    ids=["index", "empty string", "digits", "no column", "number as name"],
)
def test_table_that_csv_would_change_is_refused(store, made):
    with pytest.raises(ValueError, match="a table that a CSV file does not hold"):
        store.table("t", SPEC, lambda: made)
    assert visible(store.root) == []


# Code and single files


def test_write_atomic_replaces_and_cleans_up(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file.csv"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"never")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]
