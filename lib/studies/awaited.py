"""What a notebook of a study in full would have to train first: hours of it are begun by nobody who only looked in."""

from __future__ import annotations

from IPython.display import Image, Markdown, display

from lib.settings.paths import COMMITTED
from lib.studies.cases import Attack, Case
from lib.studies.collapse.editor import edits_spec
from lib.studies.pipeline import READS
from lib.studies.run import Run
from lib.studies.runs import model_spec, profile_runs

MINUTES = {"collapse": 3, "disp": 5}  # of one core for a training and what is measured of it, at laptop scale


def check_asked(run: Run, out: str | None) -> None:
    """Shows the committed figures and raises ValueError where `out` is None and the store lacks what the notebook's
    trainings make."""
    runs = {name: given for name, given in profile_runs(run.profile).items() if name.startswith(READS[run.notebook])}
    missing = [name for name, given in runs.items() if not _there(run, *given)]
    if out is None and missing:
        show_committed(run.notebook)
        study = run.notebook.split("_")[1]
        hours = max(1, round(len(missing) * MINUTES.get(study, 0) / 60))
        raise ValueError(
            f"out=None: {len(runs) - len(missing)} of {len(runs)} trainings are in the store, not {missing[0]}. "
            f"`make figures STUDY={study} FULL=1` makes the others, in about {hours} h of one core at laptop scale, as "
            f"this notebook does where `out` is a folder; figures/{run.notebook}/{run.notebook}.ipynb is this notebook "
            "as it was run"
        )


def show_committed(notebook: str) -> None:
    """The figures that the repository holds of the notebook."""
    display(Markdown(f"**As committed, in `figures/{notebook}`:**"))
    for picture in sorted((COMMITTED / notebook).glob("*.png")):
        display(Markdown(f"*{picture.stem.replace('_', ' ')}*"), Image(picture))


def _there(run: Run, study: str, case: Attack | Case | str | None) -> bool:
    """Whether the store holds what a run of `profile_runs` trains: the model, or the edits that one was needed for."""
    if study == "attack":
        return run.store.has("coalition-edits", edits_spec(case.run(run), case.protocol))
    return run.store.has(*model_spec(run, study, case))
