"""What tells apart the data sets and models that a profile names: the digests of what their folders hold."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from lib.runtime.digests import folder_digest
from lib.settings.inputs import EditSet, Mmmu, QuestionSet
from lib.settings.paths import model_source
from lib.settings.profile import Profile
from lib.settings.sections import Section, changed

MODELS = ("clip", "editor", "control", "mdlm", "dino")


@lru_cache(maxsize=16)
def digest(source: EditSet | QuestionSet | Mmmu) -> str:
    """SHA-256 of a data set: a hub's name and commit; the names and contents of all files in a folder."""
    sha = hashlib.sha256(source.model_dump_json(exclude={"name", "pictures"}).encode())
    for name in filter(None, (source.name, getattr(source, "pictures", None))):
        sha.update(folder_digest(model_source(name)).encode())
    return sha.hexdigest()


def sources(profile: Profile) -> dict[str, str]:
    """The digest of every model and data set of the profile, and of those that its grid names, by where they are named.

    Not kept within a process: a session that plans twice sees what has changed.
    """
    profiles = {"": profile}
    for other in profile.disp_grid.datasets:
        profiles[f"{other.label}: "] = changed(profile, other.settings | {"disp_grid": {"datasets": []}})
    made = {}
    for label, one in profiles.items():
        named = {name: getattr(one.models, name) for name in MODELS}
        made |= {f"{label}models.{name}": folder_digest(model_source(at)) for name, at in named.items() if at}
        sets = {name: getattr(one.data, name) for name in ("edits", "questions", "mmmu")}
        made |= {f"{label}data.{k}": digest.__wrapped__(part) for k, part in sets.items() if isinstance(part, Section)}
    return made
