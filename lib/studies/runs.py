"""The training runs of the studies by name, for the pipeline: one process each, or several that share its work.

python -m lib.studies.runs mdlm-poisoned --profile laptop --seed 0 --mark build/laptop/runs/mdlm-poisoned.json
accelerate launch --config_file profiles/accelerate/ddp.yaml -m lib.studies.runs mdlm-poisoned --device cuda …
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from pathlib import Path

from safetensors import SafetensorError

from lib.runtime.processes import joined, rank
from lib.runtime.store import write_atomic
from lib.settings.profile import Profile
from lib.studies.cases import Attack, Case, attacks, cases, few, few_of
from lib.studies.run import Run, run_parameters


def profile_runs(profile: Profile) -> dict[str, tuple[str, Attack | Case | str | None]]:
    """All runs that the profile names, as `trained` takes them: of what study, and which attack, case or protocol."""
    runs: dict[str, tuple[str, Attack | Case | str | None]] = {"mdlm-poisoned": ("mdlm", None)}
    part = few(profile)
    shown = [case for case in cases(part) if case.part != "headline"] if part else []
    runs |= {case.name.replace("disp", "few", 1): ("few", case) for case in shown}
    runs |= {f"collapse-mdlm-{protocol}": ("answers", protocol) for protocol in profile.mdlm_collapse.protocols}
    runs |= {attack.name: ("attack", attack) for attack in attacks(profile)}
    runs |= {f"disp-words-{protocol}": ("words", protocol) for protocol in profile.disp_grid.protocols}
    runs |= {"disp-editor": ("edits", None)}
    return runs | {case.name: ("disp", case) for case in cases(profile)}


def trained(run: Run, study: str, case: Attack | Case | str | None) -> dict[str, str]:
    """Train and measure what the notebooks show of one run of `profile_runs`: its model's kind and key in the store."""
    from lib.studies.attacks.mdlm import poisoned_mdlm
    from lib.studies.collapse import tables as collapse
    from lib.studies.collapse.mdlm import mdlm_collapse
    from lib.studies.disp import tables as disp
    from lib.studies.disp.editor_tables import PROTOCOL, masking_curve, purification_table
    from lib.studies.disp.restored import restored_table

    edit_tables = (masking_curve, purification_table)
    {
        "mdlm": lambda: poisoned_mdlm(run),
        "few": lambda: disp.prepare(few_of(run), case),
        "disp": lambda: disp.prepare_in_full(run, case),
        "words": lambda: restored_table(run, case),
        "answers": lambda: mdlm_collapse(run, case),
        "attack": lambda: collapse.prepare(run, case),
        "edits": lambda: [table(run, PROTOCOL) for table in edit_tables],
    }[study]()
    kind, spec = model_spec(run, study, case)
    return {kind: run.store.key(kind, spec)}


def model_spec(run: Run, study: str, case: Attack | Case | str | None) -> tuple[str, dict]:
    """The kind in the store of the model that one run of `profile_runs` trains, and what it depends on."""
    from lib.studies.attacks.editor import editor_spec
    from lib.studies.attacks.mdlm import mdlm_spec
    from lib.studies.disp.editor_tables import PROTOCOL

    if study in ("attack", "edits"):
        own, protocol = (case.run(run), case.protocol) if study == "attack" else (run, PROTOCOL)
        return "poisoned-editor", editor_spec(own, protocol)
    own, protocol = (case.run(run), "image") if isinstance(case, Case) else (run, case or "image")
    return "poisoned-mdlm", mdlm_spec(own, protocol)


def sentence(error: Exception) -> str:
    """What ended a run, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "No space left" in text or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({text}): make room and run the same command again, it goes on at what was saved last"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one model of the studies, or find it in the store.")
    parser.add_argument("name", help="mdlm-poisoned, or a run of the studies, as editor-pair-white-box-or-0")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--overrides", default="{}", type=json.loads)
    parser.add_argument("--mark", type=Path, required=True, help="file that names the finished artifacts")
    chosen = parser.parse_args()
    try:
        run = run_parameters(chosen.name, chosen.profile, chosen.seed, chosen.device, overrides=chosen.overrides)
        runs = profile_runs(run.profile)
        if chosen.name not in runs:
            raise ValueError(f"name is {chosen.name!r}: it must be one of {', '.join(runs)}.")
        with joined(str(run.device)):
            keys = trained(run, *runs[chosen.name])
            if rank() == 0:
                write_atomic(chosen.mark, json.dumps(keys).encode())
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        sys.exit(f"lib.studies.runs: {sentence(error)}")


if __name__ == "__main__":
    main()
