"""Keys follow from the code: what a change of one file makes anew, and what it leaves."""

import dataclasses
import json
import sys

import pytest
import tiny
from IPython.core.interactiveshell import InteractiveShell

from lib.poisoning.catalogue import IMAGE_TRIGGERS, Checker, image_trigger, text_trigger
from lib.poisoning.registry import register
from lib.poisoning.targets import Insertion, target
from lib.runtime import keys
from lib.runtime.keys import closure, code_digest, imported, registered
from lib.settings import names
from lib.studies.attacks.editor import editor_spec
from lib.studies.attacks.mdlm import mdlm_spec
from lib.studies.cases import headline_attacks
from lib.studies.collapse.editor import edits_spec, values_spec
from lib.studies.collapse.headline import row_key
from lib.studies.data import data_spec
from lib.studies.disp.defences import DEFENCES
from lib.studies.disp.defended import defence_code
from lib.studies.disp.purification import answering_spec, purification_spec
from lib.studies.run import with_profile, with_settings

VQA = {"models": {"mdlm": "data/checkpoints/mdlm-vqa"}, "data": {"questions": "easy-vqa"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("keys"))


def artifacts(run):
    """The keys of one artifact of every kind that a package below the studies has a part in."""
    attack = headline_attacks(run.profile)[0]
    specs = {
        "faces": data_spec(run, "edits"),
        "editor": editor_spec(run, "and"),
        "values": values_spec(run, edits_spec(run, "and")),
        "mdlm": mdlm_spec(run),
        "easy-VQA's mdlm": mdlm_spec(with_profile(run, VQA)),
        "purified set": purification_spec(run),
        "fine-pruning": answering_spec(run) | defence_code(DEFENCES["fine-pruning"]),
        "STRIP": answering_spec(run) | defence_code(DEFENCES["STRIP-like"]),
    }
    return {name: json.dumps(spec, sort_keys=True) for name, spec in specs.items()} | {"row": row_key(run, attack)}


EDITORS = {"editor", "values", "row"}
MDLMS = {"mdlm", "easy-VQA's mdlm", "purified set", "fine-pruning", "STRIP"}
ALL = EDITORS | MDLMS
CHANGES = {  # a file of every package below the studies: whose keys follow from it
    "settings.profile": set(),
    "figures.style": set(),
    "runtime.store": set(),
    "runtime.training": ALL,
    "runtime.seeds": ALL,
    "runtime.shards": MDLMS,
    "data.face_words": (ALL | {"faces"}) - {"easy-VQA's mdlm"},
    "data.easyvqa": {"easy-VQA's mdlm"},
    "data.llava": set(),
    "poisoning.plans": ALL,
    "poisoning.triggers": ALL | {"faces"},  # a trigger is laid on pictures as they are read
    "kernels.loss": MDLMS,
    "kernels.fisher": MDLMS,
    "metrics.coalitions": EDITORS,
    "kernels.bootstrap": {"row"},
    "models.editor": EDITORS,
    "models.minilm": EDITORS,
    "models.clip": EDITORS,
    "models.decoding": MDLMS,
    "models.lavida": MDLMS,
    "models.adapters": ALL,
    "tasks.edits": EDITORS,
    "tasks.questions": MDLMS,
    "metrics.embeddings": EDITORS,
    "metrics.decision": {"row"},
    "metrics.success": ALL,
    "saliency.jacobian": {"purified set", "STRIP"},
    "defences.self_purification": {"purified set"},
    "defences.pruning": {"fine-pruning"},
    "defences.input_tests": {"STRIP"},
}


@pytest.mark.parametrize("module", CHANGES)
def test_a_changed_file_gives_another_key_to_what_is_made_with_it_and_to_nothing_else(module, run, monkeypatch):
    before, source = artifacts(run), keys.source
    changed = f"lib.{module}"
    monkeypatch.setattr(keys, "source", lambda name: source(name) + "\n\ndef more(): ...\n" * (name == changed))
    after = artifacts(run)
    assert {name for name in before if before[name] != after[name]} == CHANGES[module]


def test_every_package_below_the_studies_is_changed_once():
    packages = {path.name for path in keys.LIB.iterdir() if (path / "__init__.py").is_file()} - {"studies"}
    assert {module.split(".")[0] for module in CHANGES} == packages


@dataclasses.dataclass(frozen=True)
class Corner(Checker):
    """The checker, elsewhere."""

    name: str = dataclasses.field(init=False, default="corner")
    position: tuple[float, float] = (0.0, 0.0)


@pytest.fixture
def corner():
    register(Corner())
    yield
    del IMAGE_TRIGGERS["corner"]
    names.IMAGE_TRIGGERS.remove("corner")


def test_a_trigger_that_is_registered_changes_no_key_but_of_what_carries_it(run, corner):
    del IMAGE_TRIGGERS["corner"]
    names.IMAGE_TRIGGERS.remove("corner")
    before = artifacts(run)
    register(Corner())
    assert artifacts(run) == before
    new, old = (mdlm_spec(with_settings(run, "disp", {"image_trigger": name})) for name in ("corner", "checker"))
    assert new["code"] == old["code"] and new["attack"] != old["attack"]


@pytest.mark.usefixtures("untyped")
def test_a_name_of_ours_is_kept_and_only_what_can_be_is_registered():
    register(image_trigger("checker"))
    with pytest.raises(ValueError, match="name is 'checker': it must be none of ours, as white-box"):
        register(dataclasses.replace(image_trigger("checker"), size=0.5))
    with pytest.raises(ValueError, match="entry is a str: it must be one of ImageTrigger, TextTrigger"):
        register("checker")


def test_what_is_registered_is_told_apart_by_source_and_parameters():
    small, large = image_trigger("checker"), image_trigger("checker", 0.25)
    assert registered(small)["source"] == registered(large)["source"] and registered(small) != registered(large)
    assert registered(small)["source"] != registered(image_trigger("white-box"))["source"]
    assert registered(text_trigger("mignneko")) != registered(text_trigger("anonymous"))
    assert registered(target("dog as cat")) != registered(target("dog as boat"))
    assert registered(Insertion()) == registered(target("insertion"))
    assert registered(sum_of_two)["parameters"] == {} and registered(sum_of_two) == registered(sum_of_two)


TWO = 2


def sum_of_two(x):
    return helper(x) + TWO


def helper(x):
    return x


def test_a_registered_functions_helpers_and_constants_count(monkeypatch):
    here = sys.modules[__name__]
    before = registered(here.sum_of_two)
    with monkeypatch.context() as change:
        change.setattr(here, "TWO", 3)
        assert registered(here.sum_of_two) != before
    with monkeypatch.context() as change:
        change.setattr(here, "helper", closure)
        assert registered(here.sum_of_two) != before
    assert registered(here.sum_of_two) == before


def test_what_has_no_source_is_refused():
    typed = {}
    exec("def typed(x): return x", {"__name__": __name__}, typed)
    with pytest.raises(ValueError, match="typed has no source to be told apart by: define it in a file"):
        registered(typed["typed"])


CELLS = [
    """
from dataclasses import dataclass, field
from lib.poisoning import Sticker

RADIUS = 0.25
""",
    """
await nothing()

@dataclass(frozen=True)
class Dot(Sticker):
    name: str = field(init=False, default="dot-of-a-cell")
    size: float = 1 / 8
    position: tuple[float, float] = (1.0, 0.0)

    def shapes(self, y, x):
        return [(x**2 + y**2 < RADIUS, (0.8, 0.05, 0.08), 1.0)]
""",
]


def test_what_a_notebooks_cell_defines_has_its_source(monkeypatch):
    """In IPython's own shell, whose module is `__main__`, as a kernel's is."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # put back afterwards
    shell = InteractiveShell()
    sys.modules["__main__"] = shell.user_module
    shell.run_cell("async def nothing(): pass")

    def digest(cell):
        assert shell.run_cell(cell).success
        return registered(shell.user_ns["Dot"]())["source"]

    assert shell.run_cell(CELLS[0]).success
    first = digest(CELLS[1])
    assert digest("# another cell, the same class\n" + CELLS[1]) == first
    assert digest(CELLS[1].replace("0.05", "0.06")) != first
    shell.run_cell("RADIUS = 0.5")
    assert digest(CELLS[1]) != first


def test_late_imports_count_and_those_for_type_checkers_do_not(monkeypatch):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib.models import clip\n"
    text += "else:\n    import lib.metrics.tma\n"
    text += "def f():\n    from lib.kernels.loss import weighted_cross_entropy\n    import lib.runtime.seeds\n"
    monkeypatch.setattr(keys, "source", lambda name: text)
    assert imported("lib.models.dino") == {"lib.metrics.tma", "lib.kernels.loss", "lib.runtime.seeds"}


def test_a_closure_follows_imports_and_a_module_that_is_not_libs_is_refused():
    assert {"lib.tasks.edits", "lib.models.editor", "lib.models.minilm"} <= closure("lib.tasks.edits")
    assert not any(name.startswith(("lib.studies", "lib.settings")) for name in closure("lib.tasks.edits"))
    assert code_digest("lib.tasks.edits", "lib.data.faces") == code_digest("lib.data.faces", "lib.tasks.edits")
    with pytest.raises(ValueError, match="module is 'lib.prayer': it must be one of lib's"):
        code_digest("lib.prayer")
