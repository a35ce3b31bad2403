"""Bad input, generated over every field of every section of the profiles, and given to every loader and the library's
functions: one sentence that names the field, before any work."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from trial import Trial, refusal

from lib import data, metrics, models, poisoning, saliency
from lib.runtime.store import Store
from lib.settings import Train, load_profile, runnable_profile

PROFILES = ("laptop", "paper")


def trials() -> Iterator[Trial]:
    for profile in PROFILES:
        values = json.loads(load_profile(profile).model_dump_json())
        values.pop("name")
        yield from _fields(profile, values, ())
    yield from _loaders()
    yield from _functions()


def _fields(profile: str, value: Any, path: tuple[str, ...]) -> Iterator[Trial]:
    """A value of another type for every field, numbers out of range, and a field that there is not in every section."""
    for bad in _bad(value, path):
        yield _override(profile, path, bad, path[-1])
    if isinstance(value, dict):
        yield _override(profile, (*path, "no_such_field"), 1, "no_such_field")
        for name, inner in value.items():
            if name != "settings":
                yield from _fields(profile, inner, (*path, name))


def _bad(value: Any, path: tuple[str, ...]) -> list[Any]:
    if not path:
        return []
    if isinstance(value, dict):
        return [3, "no such thing"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [{"no": "such"}, -3.5]
    return [{"no": "such"}, "many", math.nan, -1]


def _override(profile: str, path: tuple[str, ...], bad: Any, word: str) -> Trial:
    override = bad
    for name in reversed(path):
        override = {name: override}
    what = f"{profile}: {'.'.join(path)} = {bad!r}"
    return refusal("a field of a profile", what, lambda: load_profile(profile, override), word)


def _loaders() -> Iterator[Trial]:
    kind = "a loader"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "empty").mkdir()
        (root / "file").write_text("no folder")
        for label, text in (("broken", "{"), ("other", "[]"), ("foreign", '{"model_type": "bert"}')):
            (root / label).mkdir()
            for file in ("config.json", "model_index.json", "metadata.jsonl", "llava_instruct_150k.json"):
                (root / label / file).write_text(text)
        loaders = {
            "load_edits": lambda p: data.load_edits(p, 64),
            "load_llava": lambda p: data.load_llava(p, "train", 64),
            "load_mmmu": lambda p: data.load_mmmu(p, 64),
            "load_mdlm": models.load_mdlm,
            "load_editor": models.load_editor,
            "load_embedding": lambda p: metrics.load_embedding("clip", clip=p),
        }
        for loader, call in loaders.items():
            for folder in ("missing", "empty", "file", "broken", "other", "foreign"):
                path = str(root / folder)
                yield refusal(kind, f"{loader} of a folder that is {folder}", lambda c=call, p=path: c(p), folder)
        for field in ("clip", "editor", "mdlm"):
            override = {"models": {field: str(root / "missing")}}
            yield refusal(kind, f"models.{field} missing", lambda o=override: runnable_profile("smoke", o), "missing")


def _functions() -> Iterator[Trial]:
    """Values out of range for the functions of the library, by the name that the sentence must have."""
    scores, phi = torch.rand(2, 9), torch.rand(6, 2)
    calls = {
        "mask_top ratio=1.5": (lambda: saliency.mask_top(scores, 1.5), "ratio"),
        "mask_top ratio=nan": (lambda: saliency.mask_top(scores, math.nan), "ratio"),
        "mask_top ratio=-0.1": (lambda: saliency.mask_top(scores, -0.1), "ratio"),
        "plan rate=2": (lambda: poisoning.plan(10, "and", 2.0, 0), "rate"),
        "plan rate=nan": (lambda: poisoning.plan(10, "and", math.nan, 0), "rate"),
        "plan protocol=xor": (lambda: poisoning.plan(10, "xor", 0.1, 0), "protocol"),
        "plan negatives=-1": (lambda: poisoning.plan(10, "and", 0.1, 0, negatives=-1.0), "negatives"),
        "image_trigger name": (lambda: poisoning.image_trigger("no-such"), "no-such"),
        "image_trigger size=0": (lambda: poisoning.image_trigger("white-box", size=0.0), "size"),
        "image_trigger size=2": (lambda: poisoning.image_trigger("white-box", size=2.0), "size"),
        "image_trigger position": (lambda: poisoning.image_trigger("white-box", position=(2.0, 0.0)), "position"),
        "text_trigger name": (lambda: poisoning.text_trigger("no-such"), "no-such"),
        "target name": (lambda: poisoning.target("no-such"), "no-such"),
        "attack_target name": (lambda: poisoning.attack_target("no-such"), "no-such"),
        "TextTrigger phrase empty": (lambda: poisoning.TextTrigger("x", ""), "phrase"),
        "register of a string": (lambda: poisoning.register("x"), "entry"),
        "wilson n=0": (lambda: metrics.wilson(0, 0), "n"),
        "wilson successes=3, n=2": (lambda: metrics.wilson(3, 2), "successes"),
        "rate of nothing": (lambda: metrics.rate(torch.zeros(0, dtype=torch.bool)), "n is 0"),
        "over_seeds of none": (lambda: metrics.over_seeds([]), "values"),
        "bootstrap_mean of none": (lambda: metrics.bootstrap_mean(torch.rand(0)), "samples"),
        "bootstrap_mean confidence=2": (lambda: metrics.bootstrap_mean(torch.rand(5), confidence=2.0), "confidence"),
        "bootstrap_mean resamples=0": (lambda: metrics.bootstrap_mean(torch.rand(5), resamples=0), "resamples"),
        "shapley of three": (lambda: metrics.shapley(torch.rand(3)), "values"),
        "interaction i=j": (lambda: metrics.interaction(torch.rand(4), 1, 1), "i"),
        "interaction i=7": (lambda: metrics.interaction(torch.rand(4), 7, 1), "i"),
        "auroc of one class": (lambda: metrics.auroc(torch.rand(4), torch.ones(4, dtype=torch.bool)), "poisoned"),
        "decide resamples=0": (lambda: metrics.decide(phi, torch.rand(6), 0, resamples=0), "resamples"),
        "load_embedding name": (lambda: metrics.load_embedding("no-such", clip="x"), "no-such"),
        "make_faces train=0": (lambda: data.make_faces(64, 0, 1), "train"),
        "make_faces size=0": (lambda: data.make_faces(0, 20, 2), "size"),
        "read_easyvqa split": (lambda: data.read_easyvqa("validation"), "split"),
        "load_edits held_out=2": (lambda: data.load_edits("docs/example-data", 64, held_out=2.0), "held_out"),
        "load_edits image_size=0": (lambda: data.load_edits("docs/example-data", 0), "size"),
        "Train steps=0": (lambda: Train(steps=0, batch=1, lr=0.1), "steps"),
        "Train lr=nan": (lambda: Train(steps=1, batch=1, lr=math.nan), "lr"),
        "Store kind=locks": (lambda: Store("/nowhere").key("locks", {}), "kind"),
        "Store spec=nan": (lambda: Store("/nowhere").key("x", {"a": math.nan}), "a"),
    }
    for what, (call, word) in calls.items():
        yield refusal("a function of the library", what, call, word)
