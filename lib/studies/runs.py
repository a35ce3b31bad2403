"""The training runs of the studies by name, for the pipeline: one process each, or several that share its work.

python -m lib.studies.runs mdlm-poisoned --profile laptop --seed 0 --mark build/laptop/runs/mdlm-poisoned.json
accelerate launch --config_file profiles/accelerate/ddp.yaml -m lib.studies.runs mdlm-poisoned --device cuda …
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from lib.runtime.processes import joined, rank
from lib.runtime.store import write_atomic
from lib.settings.profile import Profile
from lib.studies.cases import Attack, Case, attacks, cases, few, few_of
from lib.studies.run import Run, run_parameters


def _mdlm(run: Run) -> dict:
    from lib.studies.attacks.mdlm import mdlm_spec, poisoned_mdlm

    poisoned_mdlm(run)
    return {"poisoned-mdlm": run.store.key("poisoned-mdlm", mdlm_spec(run))}


def _attack(attack: Attack) -> Callable[[Run], dict]:
    def make(run: Run) -> dict:
        from lib.studies.attacks.editor import editor_spec
        from lib.studies.collapse.tables import prepare

        prepare(run, attack)
        return {"poisoned-editor": run.store.key("poisoned-editor", editor_spec(attack.run(run), attack.protocol))}

    return make


def _answers(protocol: str) -> Callable[[Run], dict]:
    def make(run: Run) -> dict:
        from lib.studies.attacks.mdlm import mdlm_spec
        from lib.studies.collapse.mdlm import mdlm_collapse

        mdlm_collapse(run, protocol)
        return {"poisoned-mdlm": run.store.key("poisoned-mdlm", mdlm_spec(run, protocol))}

    return make


RUNS: dict[str, Callable[[Run], dict]] = {"mdlm-poisoned": _mdlm}


def _case(case: Case, prepared: Callable[[Run, Case], None]) -> Callable[[Run], dict]:
    def make(run: Run) -> dict:
        from lib.studies.attacks.mdlm import mdlm_spec

        prepared(run, case)
        return {"poisoned-mdlm": run.store.key("poisoned-mdlm", mdlm_spec(case.run(run)))}

    return make


def _in_part(run: Run, case: Case) -> None:
    from lib.studies.disp.tables import prepare

    prepare(few_of(run), case)


def _in_full(run: Run, case: Case) -> None:
    from lib.studies.disp.tables import prepare_in_full

    prepare_in_full(run, case)


def _restored(protocol: str) -> Callable[[Run], dict]:
    def make(run: Run) -> dict:
        from lib.studies.attacks.mdlm import mdlm_spec
        from lib.studies.disp.restored import restored_table

        restored_table(run, protocol)
        return {"poisoned-mdlm": run.store.key("poisoned-mdlm", mdlm_spec(run, protocol))}

    return make


def _edited(run: Run) -> dict:
    from lib.studies.attacks.editor import editor_spec
    from lib.studies.disp.editor_tables import PROTOCOL, masking_curve, purification_table

    masking_curve(run, PROTOCOL)
    purification_table(run, PROTOCOL)
    return {"poisoned-editor": run.store.key("poisoned-editor", editor_spec(run, PROTOCOL))}


def profile_runs(profile: Profile) -> dict[str, Callable[[Run], dict]]:
    """All runs that the profile names: RUNS, those that notebook 04 shows beside ("few-…"), and the studies in full."""
    part = few(profile)
    chosen = {case.name.replace("disp", "few", 1): _case(case, _in_part) for case in (cases(part) if part else ())}
    answers = {f"collapse-mdlm-{protocol}": _answers(protocol) for protocol in profile.mdlm_collapse.protocols}
    answers |= {attack.name: _attack(attack) for attack in attacks(profile)}
    answers |= {f"disp-words-{protocol}": _restored(protocol) for protocol in profile.disp_grid.protocols}
    answers["disp-editor"] = _edited
    return RUNS | chosen | answers | {case.name: _case(case, _in_full) for case in cases(profile)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one model of the studies, or find it in the store.")
    parser.add_argument("name", help=f"{', '.join(RUNS)}, or a run of the studies, as editor-pair-white-box-or-0")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--overrides", default="{}", type=json.loads)
    parser.add_argument("--mark", type=Path, required=True, help="file that names the finished artifacts")
    chosen = parser.parse_args()
    try:
        run = run_parameters(chosen.name, chosen.profile, chosen.seed, chosen.device, overrides=chosen.overrides)
        known = profile_runs(run.profile)
        if chosen.name not in known:
            raise ValueError(f"name is {chosen.name!r}: it must be one of {', '.join(known)}.")
    except ValueError as error:
        sys.exit(f"lib.studies.runs: {error}")
    with joined(str(run.device)):
        made = known[chosen.name](run)
        if rank() == 0:
            write_atomic(chosen.mark, json.dumps(made).encode())


if __name__ == "__main__":
    main()
