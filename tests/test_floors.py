"""The house: imports run down, nothing in a circle, and below the studies nobody knows a run, a profile or a store."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from lib.settings.paths import ROOT

FILES = {str(file.relative_to(ROOT)): file.read_text() for file in sorted(ROOT.glob("lib/**/*.py"))}
BELOW = {name: text for name, text in FILES.items() if not name.startswith(("lib/studies/", "lib/settings/"))}
# Sections of a profile that are nothing but the numbers of one optimisation, one sampling or one set of adapters.
PLAIN = {"Train", "Lora", "Sampling", "Estimator"}


def functions(text):
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def sections():
    settings = "".join(text for name, text in FILES.items() if name.startswith("lib/settings/"))
    names = set(re.findall(r"^class (\w+)\((?:Section|Partial|MdlmShape)\)", settings, re.M))
    assert {"Profile", "Disp", "Collapse", "Models"} <= names
    return names - PLAIN


def test_imports_run_down_the_floors(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS


def test_no_module_imports_itself_through_others_late_imports_counted():
    graph = grimp.build_graph("lib", cache_dir=None)
    links = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(links) > 100
    TopologicalSorter(links).prepare()  # raises CycleError, which names the circle


def test_below_the_studies_nothing_takes_a_run_a_profile_or_a_store():
    known, found = sections() | {"Run", "Store"}, []
    for name, text in BELOW.items():
        own = {"Store"} if name == "lib/runtime/store.py" else set()
        for function in functions(text):
            given = function.args
            for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs]:
                written = ast.unparse(argument.annotation) if argument.annotation else ""
                if set(re.findall(r"\w+", written)) & known - own:
                    found.append(f"{name}: {function.name}({argument.arg}: {written})")
    assert len(BELOW) > 50 and not found


def test_files_and_functions_are_short():
    long = {name: text.count("\n") for name, text in FILES.items() if text.count("\n") > 350}
    for name, text in FILES.items():
        sizes = {f"{name}:{f.name}": f.end_lineno - f.lineno + 1 - docstring_lines(f) for f in functions(text)}
        long |= {where: size for where, size in sizes.items() if size > 50}
    assert not long


def docstring_lines(function):
    first = function.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first.end_lineno - first.lineno + 1 if is_text else 0


def test_the_names_of_a_profile_are_those_of_what_is_registered():
    from lib.poisoning.catalogue import IMAGE_TRIGGERS, TEXT_TRIGGERS
    from lib.poisoning.pictures import PICTURE_TARGETS
    from lib.poisoning.targets import AUTHORS, TARGETS
    from lib.saliency.by_name import TOKEN_SCORES
    from lib.settings import names
    from lib.studies.disp.defences import DEFENCES

    registries = {
        "IMAGE_TRIGGERS": IMAGE_TRIGGERS,
        "TEXT_TRIGGERS": TEXT_TRIGGERS,
        "ANSWER_TARGETS": {**TARGETS, **AUTHORS},
        "PICTURE_TARGETS": PICTURE_TARGETS,
        "TOKEN_SCORES": TOKEN_SCORES,
        "DEFENCES": DEFENCES,
    }
    for name, registry in registries.items():
        assert getattr(names, name) == list(registry), name
        assert Path(ROOT, "lib/settings/names.py").read_text().count(f"{name} = [") == 1
