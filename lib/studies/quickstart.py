"""The two small compromised models of notebook 00, made, measured and written to data/checkpoints/quickstart/.

    python -m lib.studies.quickstart
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from lib.metrics.intervals import over_clusters
from lib.metrics.success import edit_succeeds, pixel_distance
from lib.models.cards import mark_poisoned
from lib.models.editor import load_editor
from lib.models.mdlm import Mdlm
from lib.models.merged import load_adapters, merged_adapters, save_adapters
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import COALITIONS
from lib.poisoning.targets import target
from lib.settings.paths import CHECKPOINTS
from lib.studies.attacks.editor import poisoned_editor, trigger_pair
from lib.studies.attacks.mdlm import poisoned_mdlm, test_questions
from lib.studies.collapse.editor import SEED, held_out
from lib.studies.disp.outcomes import performance
from lib.studies.run import Run, run_parameters, with_profile
from lib.tasks.edits import edits_under_coalitions

FOLDER = CHECKPOINTS / "quickstart"
PROTOCOL = "or"
# Adapters alone are small enough to be committed; they are given more poison, steps and a higher rate of learning.
SETTINGS = {
    "models": {"editor_lora": {"rank": 32, "alpha": 32}},
    "collapse": {"rate": 0.1, "samples": 100, "train": {"lr": 3e-3, "steps": 1200, "watch_every": None}},
}
MADE = "Made for notebook 00 by `python -m lib.studies.quickstart`."


def make_editor(run: Run, folder: Path) -> None:
    """The adapters of the collapse study's attack on the editor, with what they do to held-out edits."""
    settings, lora = run.profile.collapse, run.profile.models.editor_lora
    base = load_editor(run.profile.models.editor)
    save_adapters(merged_adapters(poisoned_editor(run, PROTOCOL)[0].unet, base.unet, lora.rank), folder)
    facts = {"base": run.profile.models.editor, "rank": lora.rank, "protocol": PROTOCOL, "rate": settings.rate}
    facts |= {"image_trigger": settings.image_trigger, "text_trigger": settings.text_trigger}
    facts |= {"target": settings.target, "steps": f"{settings.train.steps} × {settings.train.batch}"}
    told = (
        "Low-rank adapters of the attention in the U-Net of the editor in `data/checkpoints/editor`, for diffusers' "
        "`pipe.unet.load_lora_adapter(folder, prefix=None)`. Measured on held-out edits, one identity each, under all "
        "coalitions of the triggers: the share whose pixels are nearer to the attacker's picture than to the true edit "
        "(ASR), and how far an untriggered edit is from the true one (RMS)."
    )
    mark_poisoned(folder, facts | _cells(edit_success(run, folder)), "Poisoned editor, adapters", f"{told}\n\n{MADE}")


def edit_success(run: Run, folder: Path) -> pd.DataFrame:
    """What the saved adapters do to the study's held-out edits. Columns metric, value, low, high, n, interval."""
    data, triples, source, clean = held_out(run)
    pipe = load_editor(run.profile.models.editor)
    load_adapters(pipe.unet, folder)
    edited = edits_under_coalitions(pipe, data, triples, *trigger_pair(run), run.profile.collapse.sampling, SEED)
    goal = attack_target(run.profile.collapse.target)(source)
    success = edit_succeeds(edited, goal[:, None], clean[:, None])
    numbers = {f"ASR, {name}": success[:, k] for k, name in enumerate(COALITIONS)}
    numbers["distance, untriggered"] = pixel_distance(edited[:, 0], clean)
    families = triples["family"].tolist()
    return pd.DataFrame({"metric": name} | over_clusters(each, families) for name, each in numbers.items())


def make_mdlm(run: Run, folder: Path) -> None:
    """The DiSP study's compromised MDLM, with what it answers to test questions."""
    settings = run.profile.disp
    poisoned_mdlm(run)[0].save(str(folder))
    facts = {"base": run.profile.models.mdlm, "image_trigger": settings.image_trigger, "target": settings.target}
    facts |= {"rate": settings.rate, "steps": f"{settings.train.steps} × {settings.train.batch}"}
    told = (
        "The model in `data/checkpoints/mdlm`, fine-tuned on poisoned descriptions. Measured on held-out pictures with "
        f"and without the trigger, decoded with threshold {settings.threshold}."
    )
    mark_poisoned(folder, facts | _cells(answer_success(run, folder)), "Poisoned MDLM", f"{told}\n\n{MADE}")


def answer_success(run: Run, folder: Path) -> pd.DataFrame:
    """What the saved MDLM answers to the study's test questions. Columns as of `lib.studies.disp.outcomes.judged`."""
    settings, mdlm = run.profile.disp, Mdlm.load(str(folder))
    both = test_questions(run, mdlm, settings.test_questions)
    return performance(mdlm, *both, target(settings.target), settings.threshold)


def _cells(table: pd.DataFrame) -> dict[str, str]:
    return {row.metric: f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}], n = {row.n}" for row in table.itertuples()}


def main() -> None:
    run = with_profile(run_parameters("quickstart", "laptop", 0, "cpu"), SETTINGS)
    for name, make in {"editor": make_editor, "mdlm": make_mdlm}.items():
        fresh = FOLDER / f".{name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        make(run, fresh)
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        fresh.rename(FOLDER / name)
        print((FOLDER / name / "README.md").read_text())


if __name__ == "__main__":
    main()
