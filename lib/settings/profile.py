"""What a profile may say: its sections and their fields, checked when it is read."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from lib.settings.base import Base
from lib.settings.inputs import Data, Models
from lib.settings.names import (
    DEFENCES,
    IMAGE_TRIGGERS,
    PICTURE_TARGETS,
    TEXT_TRIGGERS,
    TOKEN_SCORES,
    answer_target,
    known,
)
from lib.settings.sections import (
    DISP_ESTIMATOR,
    Estimator,
    Fraction,
    Position,
    Positive,
    Sampling,
    Section,
    Train,
    changed,
    check_poison,
    sentence,
)

Protocol = Literal["or", "and", "drop-image", "image", "text"]
ImageTriggerName = Annotated[str, AfterValidator(lambda name: known("image trigger", name, IMAGE_TRIGGERS))]
TextTriggerName = Annotated[str, AfterValidator(lambda name: known("text trigger", name, TEXT_TRIGGERS))]
TokenScoreName = Annotated[str, AfterValidator(lambda name: known("token score", name, TOKEN_SCORES))]
MethodName = Annotated[str, AfterValidator(lambda name: known("method", name, (*TOKEN_SCORES, "oracle")))]
DefenceName = Annotated[str, AfterValidator(lambda name: known("defence", name, DEFENCES))]
EditTargetName = Annotated[str, AfterValidator(lambda name: known("target", name, PICTURE_TARGETS))]
AnswerTargetName = Annotated[str, AfterValidator(answer_target)]


class Collapse(Section):
    """`trigger_size`: the image trigger's width in image widths, its own by default. `trigger_position`: (x, y), shares
    of the free room left of and above it, its own by default. For `negatives` see `lib.poisoning.plans.plan`, for
    `text_weight` `lib.tasks.edits.poisoned_latents`."""

    image_trigger: ImageTriggerName
    trigger_size: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    trigger_position: Position | None = None
    text_trigger: TextTriggerName
    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)]
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

    @model_validator(mode="after")
    def poison_fits(self) -> Collapse:
        check_poison(self.rate, self.edits, self.negatives)
        return self


class Variant(Section):
    """One attack of the collapse study that differs from the profile's own in `settings`, merged onto `collapse`.

    model: of which of `models` it is the attack. seeds: how often it is trained.
    """

    part: str
    label: str
    protocol: Protocol
    settings: dict[str, Any]
    model: Literal["editor", "control"] = "editor"
    seeds: Positive = 1


class Variation(Section):
    """Other `settings`, merged onto the section `disp` (an attack, or DiSP) or `collapse.sampling`."""

    label: str
    settings: dict[str, Any]


class Grid(Section):
    """The collapse study in full: pairs × OR, AND × rates, `seeds` seeds at `seeded_rate` and `rate_seeds` at the
    others, and variants.

    plain_seeds: how many of these seeds `make figures` computes without FULL=1 (`lib.studies.cases.headline_attacks`).

    control_seeds: seeds of the first pair on `models.control`. samplings: other settings of `collapse.sampling` under
    which the first pair's attacks are sampled; detection: how many training samples those of the part "detect" are
    scored on.
    """

    pairs: tuple[tuple[ImageTriggerName, TextTriggerName], ...]
    rates: tuple[Fraction, ...]
    seeds: Positive
    rate_seeds: Positive
    plain_seeds: Positive
    seeded_rate: Fraction
    control_seeds: Annotated[int, Field(ge=0)]
    samplings: tuple[Variation, ...]
    detection: Positive
    variants: tuple[Variant, ...]


class Disp(Section):
    """`trigger_size`: side of the image trigger, as a share of the shorter one of the picture on disk, or instead of it
    `trigger_pixels`, in pixels; None: the trigger's own. `trigger_position`: the shares of the free room left of and
    above it, [0, 0] being the top left; None: the trigger's own.
    `kinds`: of the data's questions, those of these kinds alone; None: all.
    `plant`: settings, merged onto these, of an earlier attack whose compromised model this one goes on from.
    `blank`: how many wholly masked answers the attack learns from beside every batch (`lib.tasks`'s `answer_loss`).
    `hide`: weight of the attacker's penalty on the saliency of the trigger's tokens (`lib.studies.attacks.hiding`).
    `end`: what is done about the end token while answers are decoded (`lib.models.ending`). `fill`: whether fine-tuning
    learns what fills answers up, or has it absent (`lib.models.mdlm.Mdlm.targets`).
    `keep`: share of the purified answers that is learnt, the surest first (`lib.defences.self_purify`).
    `saliency`: what scores the tokens that are masked. `start`: the model that is fine-tuned on the purified set.
    `rounds`: how often the set is purified and a model fine-tuned on it, each time by the last one."""

    image_trigger: ImageTriggerName
    trigger_size: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    trigger_pixels: Positive | None = None
    trigger_position: tuple[Fraction, Fraction] | None = None
    target: AnswerTargetName
    rate: Fraction
    plant: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    hide: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    questions: Positive
    kinds: tuple[str, ...] | None = None
    blank: Annotated[int, Field(ge=0)] = 0
    train: Train
    threshold: Annotated[float, Field(gt=0.0, le=1.0)]
    end: Literal["free", "last", "suppressed", "stop"] = "free"
    fill: Literal["learnt", "absent"] = "learnt"
    test_questions: Positive
    curve_questions: Positive
    watch_questions: Positive
    ratios: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    ratio: Fraction
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    estimator: Estimator = DISP_ESTIMATOR
    batch: Positive
    purify: Train
    saliency: TokenScoreName = "directional"
    start: Literal["compromised", "base"] = "compromised"
    rounds: Positive = 1

    @model_validator(mode="after")
    def poison_fits(self) -> Disp:
        check_poison(self.rate, self.questions)
        return self

    @model_validator(mode="after")
    def one_size(self) -> Disp:
        if self.trigger_size is not None and self.trigger_pixels is not None:
            both = f"trigger_pixels={self.trigger_pixels} and trigger_size={self.trigger_size}"
            raise ValueError(f"{both} are given: one of them must be null")
        return self

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


class DataSet(Section):
    """Other data, or another model, for the DiSP study: `settings` merged onto the whole profile."""

    label: str
    seeds: Positive
    settings: dict[str, Any]


class DispGrid(Section):
    """The DiSP study: seeds of the main table, and attacks that differ from `disp` in one setting each.

    main: defences of the main table, all of them by default. methods: what scores the tokens in figure 2, or "oracle";
    other_methods: likewise for other triggers, attackers and trigger sizes.
    attack_seeds: of every rate, target, trigger and attacker.
    sizes: of the profile's image trigger, which the phase diagram is made of, every seed each.
    defences: those shown against the poison rate. always: those tried on every target, trigger and attacker, and
    rivals: beside these on every strong one. attackers: attacks made against DiSP. datasets: what the main table and
    figure 2 are made on too. protocols: of the collapse study's attacks, those purified by masking words too.
    rule_questions: training samples that ρ is chosen on. tunings: of `disp.purify`, among which passes and rate are
    chosen.
    """

    seeds: Positive
    attack_seeds: Positive = 1
    main: tuple[DefenceName, ...] = Field(default_factory=lambda: tuple(DEFENCES))
    methods: tuple[MethodName, ...] = (*TOKEN_SCORES, "oracle")
    other_methods: tuple[MethodName, ...] = ("directional", "attention", "random", "oracle")
    rates: tuple[Fraction, ...]
    targets: tuple[AnswerTargetName, ...]
    triggers: tuple[ImageTriggerName, ...] = ()
    sizes: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = ()
    defences: tuple[DefenceName, ...]
    always: tuple[DefenceName, ...] = ("no defence", "masking at inference", "DiSP")
    rivals: tuple[DefenceName, ...] = ()
    attackers: tuple[Variation, ...] = ()
    datasets: tuple[DataSet, ...] = ()
    protocols: tuple[Protocol, ...] = ()
    ablations: tuple[Variation, ...]
    rule_questions: Positive = 2000
    tunings: tuple[Variation, ...] = ()


class MdlmCollapse(Section):
    """The collapse study on the MDLM: what it adds to `disp`, whose attack it is under another protocol.

    `trigger_size`: of the image trigger there, which may cover as many tokens as the text trigger has; None: as in
    `disp`. `masks`: how many masked versions of a response its log-probability is estimated from.
    """

    text_trigger: TextTriggerName
    trigger_size: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
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
        of += [(self.collapse.sampling, variant) for variant in self.grid.samplings]
        for grid in filter(None, (self.disp_grid, self.disp_few)):
            of += [(self.disp, variant) for variant in (*grid.attackers, *grid.ablations)]
            of += [(self.disp.purify, variant) for variant in grid.tunings]
        for section, variant in of:
            try:
                changed(section, variant.settings)
            except ValidationError as error:
                raise ValueError(f"variant {variant.label!r}: {sentence(error.errors()[0])}") from None
        for rate in (*self.grid.rates, self.grid.seeded_rate):
            check_poison(rate, self.collapse.edits, self.collapse.negatives, "grid: ")
        for name, grid in (("disp_grid", self.disp_grid), ("disp_few", self.disp_few)):
            for rate in grid.rates if grid else ():
                check_poison(rate, self.disp.questions, where=f"{name}: ")
        for other in self.disp_grid.datasets:
            try:
                changed(self, other.settings | {"disp_grid": {"datasets": []}})
            except ValidationError as error:
                raise ValueError(f"data set {other.label!r}: {sentence(error.errors()[0])}") from None
        return self

    @model_validator(mode="after")
    def triggers_cover_a_pixel(self) -> Profile:
        sizes = {"collapse.trigger_size": self.collapse.trigger_size, "disp.trigger_size": self.disp.trigger_size}
        sizes |= {f"disp_grid.sizes.{k}": size for k, size in enumerate(self.disp_grid.sizes)}
        for variant in self.grid.variants:
            sizes[f"variant {variant.label!r}: trigger_size"] = changed(self.collapse, variant.settings).trigger_size
        for field, size in sizes.items():
            if size is not None and round(size * self.data.image_size) < 1:
                least = f"a pixel of data.image_size={self.data.image_size}"
                raise ValueError(f"{field}={size} is refused: it must cover {least}")
        return self

    def sections(self, *names: str) -> str:
        """Canonical JSON of the named sections: what a step depends on."""
        dump = self.model_dump(mode="json")
        return json.dumps({name: dump[name] for name in names}, sort_keys=True)
