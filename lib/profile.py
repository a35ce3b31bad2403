"""What a profile may say: its sections and their fields, checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

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


def _edit_target(name: str) -> str:
    from lib.target_pictures import attack_target

    attack_target(name)
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
EditTargetName = Annotated[str, AfterValidator(_edit_target)]
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
    """One optimisation: AdamW, linear warm-up, cosine decay to zero.

    precision: "bf16" trains in `lib.precision.half`, gradients scaled where that is float16; "no": in float32.
    """

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

    control: the editor under a text encoder that knows the edit instructions alone, if there is one. dino: a DINOv2, in
    which v is measured too. lora: what is trained of the MDLM, its own weights staying as they are,
    in bfloat16; None: all weights, in float32. editor_lora: what is trained of the editor's U-Net; None: all of it.
    """

    clip: str
    editor: str
    mdlm: str
    control: str | None = None
    dino: str | None = None
    lora: Lora | None = None
    editor_lora: Lora | None = None


class EditSet(Partial):
    """Edit triples of photographs: a folder, or a hub data set at a commit (`lib.data.edits`).

    columns: what it calls source, instruction and target.
    """

    name: str
    revision: str | None = None
    columns: tuple[str, str, str] | None = None


class QuestionSet(Partial):
    """An instruction set in LLaVA's format (`lib.data.llava`): `file` in a folder or a hub data set at a commit.

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


class FaceSet(Section):
    """How many identities are drawn; a tenth of `train` is for validation (`lib.data.faces`)."""

    train: Positive = 12_000
    test: Positive = 1_500

    @model_validator(mode="after")
    def splits(self) -> FaceSet:
        from lib.data.faces import check_counts

        check_counts(self.train, self.test)
        return self


class Data(Partial):
    """`image_size` in pixels a side; `held_out`: the share of photographs that are for testing. `edits` and
    `questions`: photographs in the place of the faces, or "easy-vqa" in that of the questions about them. `mmmu`: a
    measure of clean performance beside exact answers."""

    image_size: Annotated[int, Field(ge=32, multiple_of=8)]
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)]
    faces: FaceSet = Field(default_factory=FaceSet)
    edits: EditSet | None = None
    questions: QuestionSet | Literal["easy-vqa"] | None = None
    mmmu: Mmmu | None = None


class ClipBase(Section):
    """`seen`: from how many tokens of a picture each attribute is named while the tower learns."""

    tower: Transformer
    patch: Positive
    projection: Positive
    seen: Positive
    train: Train


class EditorBase(Section):
    """`latent_channels`: of the autoencoder, which halves a picture's sides once less often than it has widths. The
    U-Net is trained in stages, each with a learning rate that falls to zero."""

    vae_channels: tuple[Positive, ...]
    latent_channels: Positive
    vae_train: Train
    unet_channels: tuple[Positive, ...]
    unet_stages: Annotated[tuple[Train, ...], Field(min_length=1)]


class ControlBase(Section):
    """A small text encoder for the same editor, frozen, that is trained on the edit instructions alone."""

    text: Transformer
    train: Train


class MdlmShape(Section):
    """`levels`: of which of the tower's hidden states vision tokens are made."""

    decoder: Transformer
    response_length: Positive
    prompt_length: Positive
    attention: Literal["bidirectional", "prefix"]
    levels: tuple[int, ...] = (-2,)


class FacesBase(MdlmShape):
    """`seen`: how many vision tokens, drawn anew at every step, the model is shown while it learns."""

    seen: Positive
    stages: tuple[Train, Train]


class VqaBase(MdlmShape):
    stages: tuple[Train, Train, Train, Train, Train, Train, Train]


class Base(Section):
    """How `make base` trains the base models: `mdlm` is that of faces, `vqa` that of easy-VQA."""

    clip: ClipBase
    editor: EditorBase
    control: ControlBase
    mdlm: FacesBase
    vqa: VqaBase


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
    target: EditTargetName
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

    plain_seeds: how many of these seeds `make figures` computes without FULL=1 (`lib.studies.headline_attacks`).

    control_seeds: seeds of the first pair on `models.control`. guidance: text-guidance scales at which the attacks of
    the part "size" are sampled; detection: how many training samples those of the part "detect" are scored on.
    """

    pairs: tuple[tuple[ImageTriggerName, TextTriggerName], ...]
    rates: tuple[Fraction, ...]
    seeds: Positive
    plain_seeds: Positive
    seeded_rate: Fraction
    control_seeds: Annotated[int, Field(ge=0)]
    guidance: tuple[Annotated[float, Field(ge=1.0)], ...]
    detection: Positive
    variants: tuple[Variant, ...]


class Disp(Section):
    """`plant`: settings, merged onto these, of an earlier attack whose compromised model this one goes on from.
    `blank`: how many wholly masked answers the attack learns from beside every batch (`lib.answering.answer_loss`).
    `hide`: weight of the attacker's penalty on the saliency of the trigger's tokens (`lib.attacks.adaptive`).
    `saliency`: what scores the tokens that are masked. `start`: the model that is fine-tuned on the purified set.
    `rounds`: how often the set is purified and a model fine-tuned on it, each time by the last one."""

    image_trigger: ImageTriggerName
    target: AnswerTargetName
    rate: Fraction
    plant: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    hide: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    questions: Positive
    blank: Annotated[int, Field(ge=0)] = 0
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
            raise ValueError(f"plant.{sentence(error.errors()[0])}") from None
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
    """The DiSP study: seeds of the main table, and attacks that differ from `disp` in one setting each.

    main: defences of the main table, all of them by default. methods: what scores the tokens in figure 2, or "oracle".
    defences: those shown against the poison rate. always: those tried on every target, trigger and attacker, and
    rivals: beside these on every strong one. attackers: attacks made against DiSP. datasets: what the main table and
    figure 2 are made on too. protocols: of the collapse study's attacks, those purified by masking words too.
    rule_questions: training samples that ρ is chosen on.
    """

    seeds: Positive
    main: tuple[DefenceName, ...] = Field(default_factory=_defences)
    methods: tuple[MethodName, ...] = ("fisher", "attention", "occlusion", "random", "oracle")
    rates: tuple[Fraction, ...]
    targets: tuple[AnswerTargetName, ...]
    triggers: tuple[ImageTriggerName, ...] = ()
    defences: tuple[DefenceName, ...]
    always: tuple[DefenceName, ...] = ("no defence", "masking at inference", "DiSP")
    rivals: tuple[DefenceName, ...] = ()
    attackers: tuple[Variation, ...] = ()
    datasets: tuple[DataSet, ...] = ()
    protocols: tuple[Protocol, ...] = ()
    ablations: tuple[Variation, ...]
    rule_questions: Positive = 2000


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
    """All that differs by scale. `disp_few`: the part of the DiSP study that notebook 04 shows; None: none of it."""

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
    disp_few: DispGrid | None = None
    mdlm_collapse: MdlmCollapse
    jobs: Jobs

    @model_validator(mode="after")
    def variants_fit(self) -> Profile:
        of = [(self.collapse, variant) for variant in self.grid.variants]
        for grid in filter(None, (self.disp_grid, self.disp_few)):
            of += [(self.disp, variant) for variant in (*grid.attackers, *grid.ablations)]
        for section, variant in of:
            try:
                changed(section, variant.settings)
            except ValidationError as error:
                raise ValueError(f"variant {variant.label!r}: {sentence(error.errors()[0])}") from None
        for other in self.disp_grid.datasets:
            try:
                changed(self, other.settings | {"disp_grid": {"datasets": []}})
            except ValidationError as error:
                raise ValueError(f"data set {other.label!r}: {sentence(error.errors()[0])}") from None
        return self

    def sections(self, *names: str) -> str:
        """Canonical JSON of the named sections: what a step depends on."""
        dump = self.model_dump(mode="json")
        return json.dumps({name: dump[name] for name in names}, sort_keys=True)


def changed(section: AnySection, settings: Mapping[str, Any]) -> AnySection:
    """The section with `settings`, a nested mapping, merged onto it, validated again."""
    values = merged(section.model_dump(mode="json"), settings)
    return type(section).model_validate_json(json.dumps(values))


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `overrides` in their place, nested mappings key by key."""
    made = dict(values)
    for key, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = merged(made[key], value) if both else value
    return made


def sentence(error: Mapping[str, Any]) -> str:
    """What pydantic refuses, as a clause that names the field, the value and what is allowed."""
    field = ".".join(map(str, error["loc"])) or "profile"
    if error["type"] == "extra_forbidden":
        return f"{field} is not a known key"
    if error["type"] == "missing":
        return f"{field} is missing"
    given = "" if isinstance(error["input"], Mapping) else f"={error['input']!r}"
    return f"{field}{given} is refused: {error['msg'].removeprefix('Value error, ')}"
