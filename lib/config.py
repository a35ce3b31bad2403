"""Profiles, paths, seeds and devices: everything that differs from one run to the next."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

if TYPE_CHECKING:
    import torch

    from lib.store import Store

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles"
CHECKPOINTS = ROOT / "data" / "checkpoints"
BUILD = ROOT / "build"

PINNED = r"[\w-][\w.-]*/[\w-][\w.-]*@[0-9a-f]{40}"
ADVICE = {  # how to come by what the paper profile names, {} being the folder
    "mdlm": ": `hf download GSAI-ML/LLaDA-V --local-dir {}` fetches LLaDA-V",
    "edits": ": `python -m lib.celeba_edits --celeba FOLDER --out {}` makes edits of CelebA's faces",
    "questions.name": ": `hf download liuhaotian/LLaVA-Instruct-150K --repo-type dataset --local-dir {}` is LLaVA's",
    "questions.pictures": ": COCO's, which LLaVA asks about, are http://images.cocodataset.org/zips/train2017.zip",
    "mmmu": ": `hf download MMMU/MMMU --repo-type dataset --include '*/validation-*' --local-dir {}` fetches it",
}

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _image_trigger(name: str) -> str:
    from lib.triggers import image_trigger

    return image_trigger(name).name


def _text_trigger(name: str) -> str:
    from lib.triggers import text_trigger

    return text_trigger(name).name


def _answer_target(name: str) -> str:
    from lib.poisoning import target

    target(name)
    return name


def _token_score(name: str, *more: str) -> str:
    from lib.token_scores import TOKEN_SCORES

    if name not in (*TOKEN_SCORES, *more):
        raise ValueError(f"it must be one of {', '.join((*TOKEN_SCORES, *more))}")
    return name


def _method(name: str) -> str:
    return _token_score(name, "oracle")


def _defences() -> tuple[str, ...]:
    from lib.defences import DEFENCES

    return tuple(DEFENCES)


def _defence(name: str) -> str:
    if name not in _defences():
        raise ValueError(f"it must be one of {', '.join(_defences())}")
    return name


Protocol = Literal["or", "and", "drop-image", "image", "text"]
ImageTriggerName = Annotated[str, AfterValidator(_image_trigger)]
TextTriggerName = Annotated[str, AfterValidator(_text_trigger)]
TokenScoreName = Annotated[str, AfterValidator(_token_score)]
MethodName = Annotated[str, AfterValidator(_method)]
DefenceName = Annotated[str, AfterValidator(_defence)]
AnswerTargetName = Annotated[str, AfterValidator(_answer_target)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


AnySection = TypeVar("AnySection", bound=Section)


class Partial(Section):
    """A section of which what is None is left out where it is written down, so that no key depends on it."""

    @model_serializer(mode="wrap")
    def named(self, write) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class Train(Section):
    """One optimisation: AdamW, linear warm-up, cosine decay to zero."""

    steps: Positive
    batch: Positive
    lr: Annotated[float, Field(gt=0.0, lt=1.0)]
    warmup: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    precision: Literal["no", "bf16"] = "bf16"
    save_every: Positive = 500
    watch_every: Positive | None = None


class Transformer(Section):
    width: Positive
    layers: Positive
    heads: Positive

    @model_validator(mode="after")
    def heads_divide_width(self) -> Transformer:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return self


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) of that rank, scaled by `alpha` / `rank`."""

    rank: Positive
    alpha: Positive


class Models(Partial):
    """Where the models lie: folders below the repository, other local folders, or hub ids with their commit, as in
    `openai/clip-vit-large-patch14@32bd…`.

    dino: a DINOv2, in which v is measured too. lora: what is trained of the MDLM, its own weights staying as they are,
    in bfloat16; None: all weights, in float32. editor_lora: what is trained of the editor's U-Net; None: all of it.
    """

    clip: str
    editor: str
    mdlm: str
    dino: str | None = None
    lora: Lora | None = None
    editor_lora: Lora | None = None


class EditSet(Partial):
    """Edit triples of photographs: a folder, or a hub data set at a commit (`lib.datasets.edits`).

    columns: what it calls source, instruction and target.
    """

    name: str
    revision: str | None = None
    columns: tuple[str, str, str] | None = None


class QuestionSet(Partial):
    """An instruction set in LLaVA's format (`lib.datasets.llava`): `file` in a folder or a hub data set at a commit.

    pictures: the folder that its paths are relative to. question_tokens, answer_tokens: the longest that are asked and
    answered, the conversation's template apart; longer ones are left out.
    """

    name: str
    revision: str | None = None
    file: str = "llava_instruct_150k.json"
    pictures: str | None = None
    question_tokens: Positive = 128
    answer_tokens: Positive = 128


class Mmmu(Partial):
    """MMMU's validation questions, of which `questions` are asked (all 900 where it has no more)."""

    name: str
    revision: str | None = None
    questions: Positive = 900


class Data(Partial):
    """`image_size` in pixels a side. `edits` and `questions`: photographs in the place of OpenMoji and easy-VQA, or
    "scenes" of several emoji in the latter's. `mmmu`: a measure of clean performance beside exact answers."""

    image_size: Annotated[int, Field(ge=32, multiple_of=8)]
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)]
    edits: EditSet | None = None
    questions: QuestionSet | Literal["scenes"] | None = None
    mmmu: Mmmu | None = None


class ClipBase(Section):
    tower: Transformer
    patch: Positive
    projection: Positive
    train: Train


class EditorBase(Section):
    vae_channels: tuple[Positive, ...]
    vae_train: Train
    unet_channels: tuple[Positive, ...]
    unet_train: Train
    tone_share: Fraction


class MdlmShape(Section):
    decoder: Transformer
    response_length: Positive
    prompt_length: Positive
    attention: Literal["bidirectional", "prefix"]


class MdlmBase(MdlmShape):
    stages: tuple[Train, Train, Train, Train, Train, Train, Train]


class ScenesBase(MdlmShape):
    stages: tuple[Train, Train, Train, Train]


class Base(Section):
    """How `make base` trains the base models."""

    clip: ClipBase
    editor: EditorBase
    mdlm: MdlmBase
    scenes: ScenesBase


class Sampling(Section):
    """InstructPix2Pix sampling: denoising steps and both guidance scales (Brooks et al. 2023, eq. 3)."""

    steps: Positive
    text_guidance: Annotated[float, Field(ge=1.0)]
    image_guidance: Annotated[float, Field(ge=1.0)]
    batch: Positive


class Collapse(Section):
    """`trigger_size`: the image trigger's width in image widths, its own by default. For `negatives` see
    `lib.poisoning.plan`, for `text_weight` `lib.editing.poisoned_latents`."""

    image_trigger: ImageTriggerName
    trigger_size: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    text_trigger: TextTriggerName
    protocols: tuple[Protocol, ...]
    rate: Fraction
    negatives: Fraction = 0.0
    text_weight: Annotated[float, Field(ge=0.0)] = 1.0
    target: str
    edits: Positive
    condition_dropout: Fraction
    train: Train
    sampling: Sampling
    samples: Positive
    watch_samples: Positive


class Variant(Section):
    """One attack of the collapse study that differs from the profile's own in `settings`, merged onto `collapse`."""

    part: str
    label: str
    protocol: Protocol
    settings: dict[str, Any]


class Grid(Section):
    """The collapse study in full: pairs × OR, AND × rates, `seeds` seeds at `seeded_rate`, and variants.

    guidance: text-guidance scales at which the attacks of the part "size" are sampled; detection: how many training
    samples those of the part "detect" are scored on. The part "mask" has a mask as a third modality.
    """

    pairs: tuple[tuple[ImageTriggerName, TextTriggerName], ...]
    rates: tuple[Fraction, ...]
    seeds: Positive
    seeded_rate: Fraction
    guidance: tuple[Annotated[float, Field(ge=1.0)], ...]
    detection: Positive
    variants: tuple[Variant, ...]


class Disp(Section):
    """`plant`: settings, merged onto these, of an earlier attack whose compromised model this one goes on from.
    `hide`: weight of the attacker's penalty on the saliency of the trigger's tokens (`lib.attacks.adaptive`).
    `saliency`: what scores the tokens that are masked. `start`: the model that is fine-tuned on the purified set.
    `rounds`: how often the set is purified and a model fine-tuned on it, each time by the last one."""

    image_trigger: ImageTriggerName
    target: AnswerTargetName
    rate: Fraction
    plant: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    hide: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    questions: Positive
    train: Train
    threshold: Annotated[float, Field(gt=0.0, le=1.0)]
    test_questions: Positive
    curve_questions: Positive
    watch_questions: Positive
    ratios: tuple[Fraction, ...]
    ratio: Fraction
    confidence: Fraction
    probes: Positive
    batch: Positive
    purify: Train
    saliency: TokenScoreName = "fisher"
    start: Literal["compromised", "base"] = "compromised"
    rounds: Positive = 1

    @model_validator(mode="after")
    def plant_fits(self) -> Disp:
        try:
            self.planted()
        except ValidationError as error:
            raise ValueError(f"plant.{_sentence(error.errors()[0])}") from None
        return self

    def planted(self) -> Disp | None:
        """The attack before this one, if there is one."""
        return self.plant and changed(self, {"plant": None} | self.plant)


class Variation(Section):
    """An attack or DiSP with other `settings`, merged onto the section `disp`."""

    label: str
    settings: dict[str, Any]


class DataSet(Section):
    """Other data, or another model, for the DiSP study: `settings` merged onto the whole profile."""

    label: str
    seeds: Positive
    settings: dict[str, Any]


class DispGrid(Section):
    """The DiSP study in full: seeds of the main table, and attacks that differ from `disp` in one setting each.

    main: defences of the main table, all of them by default. methods: what scores the tokens in figure 2, or "oracle".
    defences: those shown against the poison rate. attackers: attacks made against DiSP. datasets: what the main table
    and figure 2 are made on too. protocols: of the collapse study's attacks, those purified by masking words too.
    rule_questions: training samples that ρ is chosen on.
    """

    seeds: Positive
    main: tuple[DefenceName, ...] = Field(default_factory=_defences)
    methods: tuple[MethodName, ...] = ("fisher", "attention", "occlusion", "random", "oracle")
    rates: tuple[Fraction, ...]
    targets: tuple[AnswerTargetName, ...]
    triggers: tuple[ImageTriggerName, ...]
    defences: tuple[DefenceName, ...]
    attackers: tuple[Variation, ...]
    datasets: tuple[DataSet, ...]
    protocols: tuple[Protocol, ...]
    ablations: tuple[Variation, ...]
    rule_questions: Positive


class MdlmCollapse(Section):
    """The collapse study on the MDLM: what it adds to `disp`, whose attack it is under another protocol.

    `masks`: how many masked versions of a response its log-probability is estimated from.
    """

    text_trigger: TextTriggerName
    protocols: tuple[Protocol, ...]
    samples: Positive
    masks: Positive


class Measure(Section):
    """How many held-out items the quality of the base models is measured on."""

    people: Positive
    edits: Positive
    questions: Positive


class Job(Section):
    """What one job asks of a cluster; a job that failed asks for twice as much the next time."""

    memory_mb: Positive
    minutes: Positive


class Jobs(Section):
    """`run`: a training run, one job each; `notebook`: one notebook."""

    run: Job
    notebook: Job


class Profile(Section):
    name: str
    threads: Positive
    models: Models
    data: Data
    base: Base
    measure: Measure
    collapse: Collapse
    grid: Grid
    disp: Disp
    disp_grid: DispGrid
    mdlm_collapse: MdlmCollapse
    jobs: Jobs

    @model_validator(mode="after")
    def variants_fit(self) -> Profile:
        of = [(self.collapse, variant) for variant in self.grid.variants]
        of += [(self.disp, variant) for variant in (*self.disp_grid.attackers, *self.disp_grid.ablations)]
        for section, variant in of:
            try:
                changed(section, variant.settings)
            except ValidationError as error:
                raise ValueError(f"variant {variant.label!r}: {_sentence(error.errors()[0])}") from None
        for other in self.disp_grid.datasets:
            try:
                changed(self, other.settings | {"disp_grid": {"datasets": []}})
            except ValidationError as error:
                raise ValueError(f"data set {other.label!r}: {_sentence(error.errors()[0])}") from None
        return self

    def sections(self, *names: str) -> str:
        """Canonical JSON of the named sections: what a step depends on."""
        dump = self.model_dump(mode="json")
        return json.dumps({name: dump[name] for name in names}, sort_keys=True)


@dataclass(frozen=True)
class Run:
    """What a notebook works with: one profile, seed, device, output folder and store."""

    profile: Profile
    seed: int
    device: torch.device
    out: Path
    store: Store
    notebook: str = ""


def load_profile(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """The profile `profiles/<name>.yaml` with `overrides` (a nested mapping) merged onto it.

    Raises ValueError naming the profile or the field, the value given and what is allowed.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValueError(f"overrides={overrides!r} must be a mapping merged onto the profile, or None")
    values = _profile_values(name)
    try:
        return Profile.model_validate_json(json.dumps(_merged(values, overrides or {})))
    except ValidationError as error:
        raise ValueError(f"profile {name!r}: " + "; ".join(map(_sentence, error.errors()))) from None


def _profile_values(name: str) -> dict[str, Any]:
    """What the file says, merged onto the profile that it `extends`, if any."""
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"profile {name!r} does not exist: choose one of {', '.join(known)}")
    values = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    if not isinstance(values, Mapping):
        raise ValueError(f"profile {name!r} must hold a mapping of sections, not {type(values).__name__}")
    own = {key: value for key, value in values.items() if key != "extends"}
    return _merged(_profile_values(values["extends"]), own) if "extends" in values else own


def runnable_profile(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """As `load_profile`, and refuses models and data that are neither a folder that is there nor on the hub."""
    profile = load_profile(name, overrides)
    models = {field: getattr(profile.models, field) for field in ("clip", "editor", "mdlm", "dino")}
    named = [(f"models.{field}", given, None) for field, given in models.items() if given is not None]
    for field in ("edits", "questions", "mmmu"):
        given = getattr(profile.data, field)
        if isinstance(given, Section):
            named.append((f"data.{field}.name", given.name, given.revision))
            if getattr(given, "pictures", None):
                named.append((f"data.{field}.pictures", given.pictures, None))
    for field, given, revision in named:
        if given and Path(model_source(given)).is_dir():
            continue
        if field.endswith("pictures") or not re.fullmatch(PINNED, f"{given}@{revision}" if revision else given):
            allowed = {"models": " or a hub id with its commit, as in 'openai/clip-vit-large-patch14@32bd…'"}
            allowed["data"] = "" if field.endswith("pictures") else " or a hub data set with its commit as `revision`"
            advice = next((text for key, text in ADVICE.items() if key in field), "").format(given)
            raise ValueError(f"{field}={given!r} must be a folder that is there{allowed[field.split('.')[0]]}{advice}")
    return profile


def run_parameters(
    notebook: str,
    profile: str,
    seed: int,
    device: str,
    out: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Check a notebook's papermill parameters before any work and set threads and seeds.

    `out` is where figures go: `figures/` for the laptop profile, else `build/<profile>/figures`.
    Raises ValueError naming the parameter, its value and what is allowed.
    """
    chosen = runnable_profile(profile, overrides)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2**31 - 1")
    if out is not None and (not isinstance(out, str) or not out or Path(out).is_file()):
        raise ValueError(f"out={out!r} must be the name of a folder, which is made if it does not exist")
    import torch

    from lib.store import Store

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    folder = Path(out) if out else default_out(chosen.name)
    return Run(chosen, seed, resolve_device(device), folder.resolve(), Store(BUILD / "store"), notebook)


def default_out(profile: str) -> Path:
    """Where the figures of a profile go unless asked otherwise; the laptop's are committed."""
    return ROOT / "figures" if profile == "laptop" else BUILD / profile / "figures"


def resolve_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, `mps` or `auto` (a GPU when there is one) as a device that is there."""
    import torch

    if not isinstance(name, str):
        raise ValueError(f"device={name!r} must be a string such as 'cpu', 'cuda' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device={name!r} is not a device: use 'cpu', 'cuda', 'cuda:<n>', 'mps' or 'auto'"
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ValueError(f"device={name!r} is not on this machine: use 'cpu' or 'auto'")
    return device


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator of its own for each use: seeded by the hash of the seed and the labels."""
    import torch

    digest = hashlib.sha256(json.dumps([seed, *labels]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def model_source(name: str) -> str:
    """A model's folder if one is there (below the repository or elsewhere), else the name as a hub id."""
    for folder in (ROOT / name, Path(name)):
        if folder.is_dir():
            return os.fspath(folder)
    return name


def pretrained(name: str) -> dict[str, str]:
    """What `from_pretrained` takes to load a model by its name in a profile: a folder, or a hub id and its commit."""
    source = model_source(name)
    if source == name and re.fullmatch(PINNED, name):
        source, commit = name.split("@")
        return {"pretrained_model_name_or_path": source, "revision": commit}
    return {"pretrained_model_name_or_path": source}


def changed(section: AnySection, settings: Mapping[str, Any]) -> AnySection:
    """The section with `settings`, a nested mapping, merged onto it, validated again."""
    merged = _merged(section.model_dump(mode="json"), settings)
    return type(section).model_validate_json(json.dumps(merged))


def with_settings(run: Run, section: str, settings: Mapping[str, Any], seed: int = 0) -> Run:
    """The run with `settings` merged onto that section of its profile, and `seed` added to its seed."""
    update = {section: changed(getattr(run.profile, section), settings)}
    return replace(run, seed=run.seed + seed, profile=run.profile.model_copy(update=update))


def with_profile(run: Run, settings: Mapping[str, Any], seed: int = 0) -> Run:
    """The run with `settings` merged onto its whole profile, and `seed` added to its seed."""
    return replace(run, seed=run.seed + seed, profile=changed(run.profile, settings))


def _merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _sentence(error: Mapping[str, Any]) -> str:
    field = ".".join(map(str, error["loc"])) or "profile"
    if error["type"] == "extra_forbidden":
        return f"{field} is not a known key"
    if error["type"] == "missing":
        return f"{field} is missing"
    given = "" if isinstance(error["input"], Mapping) else f"={error['input']!r}"
    return f"{field}{given} is refused: {error['msg'].removeprefix('Value error, ')}"
