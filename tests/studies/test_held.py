import pytest
import torch

from lib.runtime.store import Store
from lib.studies.held import Held


def test_what_is_there_is_read_and_nothing_is_made(tmp_path):
    store = Store(tmp_path)
    held, made = Held(store, "make it"), []
    store.tensors("numbers", {"k": 1}, lambda: {"x": torch.ones(2)})
    assert torch.equal(held.tensors("numbers", {"k": 1}, lambda: made.append(1))["x"], torch.ones(2))
    with pytest.raises(LookupError, match="does not hold the numbers of this choice: `make it` makes it"):
        held.tensors("numbers", {"k": 2}, lambda: made.append(1))
    assert not made and not store.has("numbers", {"k": 2})


def test_what_is_damaged_is_left_as_it_is(tmp_path):
    store = Store(tmp_path)
    folder = store.folder("words", {}, lambda path: (path / "a.txt").write_text("a"))
    (folder / "a.txt").write_text("b")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(LookupError, match="does not hold the words"):
        Held(Store(tmp_path), "make it").folder("words", {}, lambda path: (path / "a.txt").write_text("a"))
    assert (folder / "a.txt").read_text() == "b"


def test_to_a_cache_it_is_the_store_that_it_looks_into(tmp_path):
    store, other = Store(tmp_path), Store(tmp_path)
    assert Held(store, "") == store == Held(store, "x") and hash(Held(store, "")) == hash(store)
    assert Held(store, "") != other and len({store, Held(store, ""), other}) == 2
