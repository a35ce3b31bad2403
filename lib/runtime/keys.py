"""What the code contributes to a key: the import closure of what makes an artifact, and what is registered by name.

    spec = {"settings": …, "code": code_digest(__name__), "trigger": registered(trigger)}

A changed file gives another key to every artifact whose maker imports it, however far below, and to no other.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

LIB = Path(__file__).resolve().parent.parent
# What no closure goes through. Settings enter a spec by their values, data sets and what is registered (triggers,
# targets, defences) by their own source, figures and the store itself make no content.
APART = (
    "lib.settings",
    "lib.figures",
    "lib.data",
    "lib.defences",
    "lib.poisoning.catalogue",
    "lib.poisoning.targets",
    "lib.poisoning.pictures",
    "lib.poisoning.registry",
    "lib.runtime.digests",
    "lib.runtime.keys",
    "lib.runtime.store",
)


def code_digest(*modules: str) -> str:
    """SHA-256, in hexadecimal, of the source of these modules of lib and of all of lib that they import.

    Late imports count. What is `APART` does not, but for a module that is named, and the rest of its package.
    """
    sources = sorted(_sources(*modules).items())
    content = (f"{name} {hashlib.sha256(text.encode()).hexdigest()}\n" for name, text in sources)
    return hashlib.sha256("".join(content).encode()).hexdigest()


def closure(*modules: str) -> set[str]:
    """The modules of lib that these import, directly or not, and they themselves."""
    return set(_sources(*modules))


def _sources(*modules: str) -> dict[str, str]:
    """The text of every module of the closure, each read once."""
    roots = {part for part in APART for name in modules if _within(name, part)}
    texts, waiting = {}, list(modules)
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        if _file(name) is None:
            raise ValueError(f"module is {name!r}: it must be one of lib's.")
        texts[name] = source(name)
        inner = _imported(name, texts[name])
        waiting += [m for m in inner if not any(_within(m, part) for part in APART if part not in roots)]
    return texts


def library_digest() -> str:
    """SHA-256, in hexadecimal, of all of lib's source."""
    files = sorted(LIB.rglob("*.py"))
    content = (f"{file.relative_to(LIB)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files)
    return hashlib.sha256("".join(content).encode()).hexdigest()


def registered(thing: Any) -> dict[str, Any]:
    """What a trigger, target, defence or other entry of a catalogue contributes to a key.

    Its parameters (of a dataclass) and the source of its class or function, with all that this uses of the module where
    it stands. Raises ValueError where the source cannot be read, as of what was typed at a prompt.
    """
    what = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    parameters = asdict(thing) if is_dataclass(thing) and not inspect.isclass(thing) else {}
    return {"name": what.__qualname__, "source": _source_digest(what), "parameters": _plain(parameters)}


def imported(module: str) -> set[str]:
    """The modules of lib whose names stand in a module's imports, at the top of the file or not.

    What is imported for type checkers alone does not count.
    """
    return set(_imported(module, source(module)))


def source(module: str) -> str:
    """The text of a module of lib."""
    return _file(module).read_text()


@lru_cache(maxsize=1024)
def _imported(module: str, text: str) -> tuple[str, ...]:
    names = []
    for node in _run(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if _file(name) else node.module for name in inner]
    return tuple(name for name in names if _within(name, "lib") and _file(name))


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it but what stands under `if TYPE_CHECKING`."""
    yield node
    typed = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in node.orelse if typed else ast.iter_child_nodes(node):
        yield from _run(child)


@lru_cache(maxsize=1024)
def _file(module: str) -> Path | None:
    path = LIB.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _source_digest(what: Callable | type) -> str:
    """Of a class or function and of what it uses of its own module, constants by their values."""
    parts, seen, waiting = [], set(), [what]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        text = _text(one)
        parts.append(text)
        waiting += [base for base in getattr(one, "__bases__", ()) if base.__module__ == one.__module__]
        for name, value in _used(one, text):
            parts += _contribution(name, value, one.__module__, waiting)
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def _text(one: Callable | type) -> str:
    """The source of a class or function. That of a class in a notebook's cell, which `inspect` does not find, is where
    its methods are."""
    try:
        return textwrap.dedent(inspect.getsource(one))
    except (OSError, TypeError):
        pass
    for method in vars(one).values() if inspect.isclass(one) else ():
        lines = linecache.getlines(method.__code__.co_filename) if inspect.isfunction(method) else []
        cell = compile("".join(lines), "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in cell.body:
            if isinstance(node, ast.ClassDef) and node.name == one.__qualname__:
                return ast.unparse(node)
    raise ValueError(f"{one.__qualname__} has no source to be told apart by: define it in a file or a notebook's cell.")


def _contribution(name: str, value: Any, module: str, waiting: list) -> list[str]:
    """What a name that a source uses adds: a constant's value, the closure of another module of lib.

    What stands in the same module is put to those that are `waiting` to be read.
    """
    home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
    if isinstance(value, dict | list | tuple | set | frozenset):
        inner = value.values() if isinstance(value, dict) else value
        return [part for item in inner for part in _contribution(name, item, module, waiting)]
    if value is None or isinstance(value, bool | int | float | str):
        return [f"{name} = {value!r}"]
    if home == module:
        waiting.append(inspect.unwrap(value) if hasattr(value, "__qualname__") else type(value))
        return [] if hasattr(value, "__qualname__") else [f"{name} = {_plain(asdict(value))}"] * is_dataclass(value)
    return [code_digest(home)] if home and _within(home, "lib") and _file(home) else []


def _used(one: Callable | type, text: str) -> Iterator[tuple[str, Any]]:
    """Names in the text that its module binds, with their values."""
    bound = vars(sys.modules[one.__module__])
    for name in sorted({node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}):
        if name in bound:
            yield name, bound[name]


def _plain(value: Any) -> Any:
    """Parameters as JSON holds them."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
