"""Parts that are kept: the same bytes whatever was killed, cut or damaged."""

import shutil
from dataclasses import replace
from importlib import import_module

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from lib.models.decoding import decode
from lib.models.mdlm import Mdlm
from lib.runtime.shards import sharded
from lib.runtime.store import Store
from lib.saliency import words as prompt_saliency
from lib.saliency.by_name import TOKEN_SCORES
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import mask_top
from lib.saliency.words import joint_fisher_jacobian
from lib.studies.attacks.mdlm import poisoned_mdlm, poisoned_training_set
from lib.studies.collapse.mdlm import mdlm_collapse
from lib.studies.disp.defences import defence_rows
from lib.studies.disp.outcomes import base_performance, ratio_study
from lib.studies.disp.purification import purified_set, scoring, training_scores
from lib.studies.disp.ratio_rule import ratio_gains
from lib.studies.disp.words import jointly_purified_set
from lib.tasks.questions import respond

answering = import_module("lib.tasks.questions")  # whose name in the package is the function


class Killed(BaseException):
    """What no `except Exception` catches, as a kill."""


def rows(part: range) -> dict[str, torch.Tensor]:
    """Floats that no rounding leaves alone, integers, halves, and one number a sample."""
    values = torch.arange(part.start, part.stop)
    return {"x": (values[:, None] + torch.arange(3)).sqrt(), "k": values, "half": (values / 3).bfloat16()}


def recording(made: list, kill_at: int | None = None):
    def make(part: range) -> dict[str, torch.Tensor]:
        if len(made) == kill_at:
            raise Killed
        made.append((part.start, part.stop))
        return rows(part)

    return make


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
def test_parts_put_together_are_the_whole(tmp_path, size):
    for work in (None, tmp_path):
        assert same(sharded(work, 10, size, rows, "x"), rows(range(10)))
    assert same(sharded(None, 0, size, rows, "x"), rows(range(0)))


@pytest.mark.parametrize("kills", [(0,), (1,), (3,), (1, 1, 1)])
def test_killed_and_resumed_makes_every_part_once(tmp_path, kills):
    made: list = []
    for kill in kills:
        with pytest.raises(Killed):
            sharded(tmp_path, 10, 3, recording(made, len(made) + kill), "x")
    assert same(sharded(tmp_path, 10, 3, recording(made), "x"), rows(range(10)))
    assert made == [(0, 3), (3, 6), (6, 9), (9, 10)]


def test_parts_cut_elsewhere_are_not_taken_for_these(tmp_path):
    sharded(tmp_path, 10, 3, rows, "x")
    made: list = []
    assert same(sharded(tmp_path, 10, 2, recording(made), "x"), rows(range(10)))
    assert len(made) == 5
    assert same(sharded(tmp_path, 11, 3, recording(made), "x"), rows(range(11)))
    assert made[5:] == [(9, 11)]


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [flip, lambda c: c[:-1], lambda c: c[:20], lambda c: b"", lambda c: b"x" * len(c)])
def test_a_damaged_part_is_made_again(tmp_path, damage):
    sharded(tmp_path, 10, 5, rows, "x")
    file = tmp_path / "5-10.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    made: list = []
    with pytest.warns(UserWarning, match=r"5-10.safetensors is damaged; it is made again"):
        assert same(sharded(tmp_path, 10, 5, recording(made), "x"), rows(range(10)))
    assert made == [(5, 10)]
    assert same(sharded(tmp_path, 10, 5, recording(made, 1), "x"), rows(range(10)))


def test_a_part_of_others_hands_is_made_again(tmp_path):
    save_file(rows(range(5)), tmp_path / "0-5.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert same(sharded(tmp_path, 5, 5, rows, "x"), rows(range(5)))


def test_a_kill_while_a_part_is_written_leaves_none(tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("pathlib.Path.replace", killed)
        sharded(tmp_path, 10, 5, rows, "x")
    made: list = []
    assert same(sharded(tmp_path, 10, 5, recording(made), "x"), rows(range(10)))
    assert made == [(0, 5), (5, 10)]


@pytest.mark.parametrize(("shape", "said"), [((2, 4), r"x is \[2, 4\] for 3 samples"), ((), r"x is \[\] for 3")])
def test_a_tensor_without_a_row_per_sample_is_refused(tmp_path, shape, said):
    with pytest.raises(ValueError, match=said):
        sharded(tmp_path, 3, 3, lambda part: {"x": torch.zeros(shape)}, "x")
    assert not list(tmp_path.iterdir())


def killing(function, at: int):
    """The function until its call `at`, which is killed."""
    calls = []

    def call(*given, **named):
        if len(calls) == at:
            raise Killed
        calls.append(None)
        return function(*given, **named)

    return call


def contents(folder) -> list[bytes]:
    files = sorted(folder.rglob("tensors.safetensors"))
    assert files
    return [file.read_bytes() for file in files]


def test_a_purified_set_killed_in_its_parts_is_the_uninterrupted_one_to_the_byte(tmp_path, models, monkeypatch):
    """Batches of 3 for the scores and of 8 for the answers: 20 samples in 7 and 3 parts."""
    monkeypatch.setattr(answering, "together", lambda mdlm: 8)
    mdlm = Mdlm.load(models["mdlm"])
    whole, run = (tiny.short_run(tmp_path / name, models, disp={"ratio": 0.5, "batch": 3}) for name in "ab")
    data = poisoned_training_set(whole, mdlm)
    purified_set(whole, mdlm, data)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("lib.saliency.by_name.fisher_jacobian", killing(fisher_jacobian, 4))
        purified_set(run, mdlm, data)
    assert len(list((run.store.root / "work").rglob("*-*.safetensors"))) == 4
    with monkeypatch.context() as patched, pytest.raises(Killed):
        counted = killing(fisher_jacobian, 3)  # three of seven are left
        patched.setattr("lib.saliency.by_name.fisher_jacobian", counted)
        patched.setattr(answering, "decode", killing(decode, 2))
        purified_set(run, mdlm, data)
    monkeypatch.setattr(answering, "decode", killing(decode, 1))  # one of three is left
    purified_set(run, mdlm, data)
    for kind in ("saliency", "purified-set"):
        assert contents(run.store.root / kind) == contents(whole.store.root / kind)
    assert not list((run.store.root / "work").rglob("*-*.safetensors"))


def test_parts_are_the_batches_that_were_computed_together(tmp_path, models):
    """As all scores and answers in memory, batch after batch: the noise of a sample depends on its place in a batch."""
    mdlm = Mdlm.load(models["mdlm"])
    run = tiny.short_run(tmp_path, models, disp={"ratio": 0.5, "batch": 3})
    data, settings = poisoned_training_set(run, mdlm), run.profile.disp
    scores = []
    for k, part in enumerate(torch.arange(len(data)).split(3)):
        with torch.no_grad():
            vision = mdlm.model.project(data.features[data.picture[part]])
        with torch.autocast("cpu", torch.bfloat16):
            scores.append(fisher_jacobian(mdlm.model, vision, data.prompts[part], probes=1, seed=run.seed + k))
    found = training_scores(run, mdlm, data)
    assert torch.equal(found, torch.cat(scores))
    assert torch.equal(found, TOKEN_SCORES["directional"](mdlm, data, **scoring(run)))
    made = load_file(next((run.store.root / "saliency").rglob("tensors.safetensors")))
    assert torch.equal(made["scores"], found)
    tokens, probability = respond(mdlm, data, settings.threshold, masked=mask_top(found, 0.5))
    assert torch.equal(purified_set(run, mdlm, data).responses, tokens)
    made = load_file(next((run.store.root / "purified-set").rglob("tensors.safetensors")))
    assert torch.equal(made["responses"], tokens) and torch.equal(made["confidence"], probability.amin(1))


def joint(run):
    mdlm = poisoned_mdlm(run, "and")[0]
    jointly_purified_set(run, mdlm, poisoned_training_set(run, mdlm, "and"), "and", "joint")


MEASURED = {  # what makes each kind of artifact, and in what its batches end
    "defence": (lambda run: defence_rows(run, "masking at inference"), "decode"),
    "ratio-study": (lambda run: ratio_study(run, poisoned_mdlm(run)[0], ("directional",)), "decode"),
    "ratio-gains": (lambda run: ratio_gains(run, poisoned_mdlm(run)[0]), "decode"),
    "performance": (base_performance, "decode"),
    "jointly-purified-set": (joint, "decode"),
    "joint-saliency": (joint, "joint_fisher_jacobian"),
    "coalition-answers": (lambda run: mdlm_collapse(run, "or"), "decode"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, models):
    """A study whose models are trained once for all that is measured of them."""
    settings = {"ratios": [0.0, 0.5], "ratio": 0.5, "batch": 3, "threshold": 0.01}
    return tiny.short_run(tmp_path_factory.mktemp("measured"), models, disp=settings)


@pytest.mark.parametrize("kind", MEASURED)
def test_what_is_measured_goes_on_at_the_batch_at_which_it_was_killed(run, monkeypatch, kind):
    monkeypatch.setattr(answering, "together", lambda mdlm: 3)
    measure, name = MEASURED[kind]
    module, function = {
        "decode": (answering, decode),
        "joint_fisher_jacobian": (prompt_saliency, joint_fisher_jacobian),
    }[name]
    measure(run)
    folder = run.store.root / kind
    whole = {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*.*"))}

    def forget() -> None:
        for made in (kind, "jointly-purified-set"):  # which stands for the scores that it was made of
            shutil.rmtree(run.store.root / made, ignore_errors=True)

    def again(at: int | None) -> int:
        """Measure with a kill at call `at`; how many calls there were."""
        calls = []
        with monkeypatch.context() as patched:
            counted = killing(function, at)
            patched.setattr(module, name, lambda *given, **named: (calls.append(None), counted(*given, **named))[1])
            fresh = replace(run, store=Store(run.store.root))
            if at is None:
                measure(fresh)
            else:
                with pytest.raises(Killed):
                    measure(fresh)
        return len(calls)

    forget()
    total = again(None)
    forget()
    assert total > 3 and again(2) == 3 and again(total - 4) == total - 3 and again(None) == 2
    assert {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*.*"))} == whole
