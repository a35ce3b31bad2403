"""Should the laptop MDLM let picture and prompt see the answer? Accuracy, attack, DiSP and speed, side by side.

Both models were trained by the same recipe (`make base`, and `python -m lib.base vqa --attention prefix`). What is not
in the store is trained first, which takes some minutes a model; after `make figures` the bidirectional one is there.
"""

from __future__ import annotations

import argparse

from benchmarks.harness import main, pair
from lib.answering import respond
from lib.attacks.mdlm import poisoned_mdlm, test_questions
from lib.config import Run, run_parameters
from lib.models.mdlm import Mdlm
from lib.poisoning import target
from lib.purification import performance, purified_mdlm

FOLDERS = {"prefix": "mdlm-vqa-prefix", "bidirectional": "mdlm-vqa"}


def rows(chosen: argparse.Namespace) -> list[dict]:
    """One row a model and stage (base, poisoned, purified) with the three metrics; then the speed of answering."""
    made, loaded = [], {}
    for attention, folder in FOLDERS.items():
        settings = {"models": {"mdlm": f"data/checkpoints/{folder}"}, "data": {"questions": "easy-vqa"}}
        run = run_parameters("attention", "laptop", 0, chosen.device, None, settings)
        loaded[attention] = Mdlm.load(run.profile.models.mdlm, run.device)
        stages = {"base": loaded[attention], "poisoned": poisoned_mdlm(run)[0], "purified": purified_mdlm(run)[0]}
        for stage, model in stages.items():
            made.append({"case": f"{attention}, {stage}"} | measured(run, model))
    data = {name: test_questions(run, model, 256)[0] for name, model in loaded.items()}
    ways = {name: lambda name=name: respond(loaded[name], data[name], 0.95) for name in FOLDERS}
    return [*made, pair("256 answers", ways["prefix"], ways["bidirectional"], chosen, tuple(FOLDERS))]


def measured(run: Run, model: Mdlm) -> dict[str, float | int]:
    """The metrics of DiSP's table, each with its Wilson interval."""
    settings = run.profile.disp
    without, with_trigger = test_questions(run, model, settings.test_questions)
    table = performance(model, without, with_trigger, target(settings.target), settings.threshold)
    cells = {"n": settings.test_questions}
    for row in table.itertuples():
        cells |= {row.metric: row.value, f"{row.metric}, low": row.low, f"{row.metric}, high": row.high}
    return cells


main(__name__, rows, __file__)
