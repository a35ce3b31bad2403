"""What a notebook of a study in full would have to train first: hours of it are begun by nobody who only looked in."""

from __future__ import annotations

from lib.studies.cases import Attack, Case
from lib.studies.collapse.editor import edits_spec
from lib.studies.pipeline import READS
from lib.studies.run import Run
from lib.studies.runs import model_spec, profile_runs


def check_asked(run: Run, out: str | None) -> None:
    """Raises ValueError where `out` is None and the store lacks what the notebook's trainings make."""
    runs = {name: given for name, given in profile_runs(run.profile).items() if name.startswith(READS[run.notebook])}
    missing = [name for name, given in runs.items() if not _there(run, *given)]
    if out is None and missing:
        study = run.notebook.split("_")[1]
        raise ValueError(
            f"out=None: {len(runs) - len(missing)} of {len(runs)} trainings are in the store, not {missing[0]}. "
            f"`make figures STUDY={study} FULL=1` makes the others, for hours, as this notebook does where `out` is a "
            f"folder; figures/{run.notebook}/{run.notebook}.ipynb is this notebook as it was run"
        )


def _there(run: Run, study: str, case: Attack | Case | str | None) -> bool:
    """Whether the store holds what a run of `profile_runs` trains: the model, or the edits that one was needed for."""
    if study == "attack":
        return run.store.has("coalition-edits", edits_spec(case.run(run), case.protocol))
    return run.store.has(*model_spec(run, study, case))
