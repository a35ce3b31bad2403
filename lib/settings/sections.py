"""What every section of a profile is: checked when it is read, merged field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Position = tuple[Fraction, Fraction]  # shares of the free room to the left and above


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Raises ValueError, in one line, naming the field, the value given and what is allowed."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = type(self).__name__
            refused = (re.sub("^profile is refused: ", "", sentence(one)) for one in error.errors())
            raise ValueError(f"{name}: " + "; ".join(refused)) from None

    # What is read from a profile does not pass here: its sections stay part of one validation, which names them all.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


AnySection = TypeVar("AnySection", bound=Section)


class Partial(Section):
    """A section of which what is None is left out where it is written down, so that no key depends on it."""

    @model_serializer(mode="wrap")
    def named(self, write) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class Train(Section):
    """One optimisation: AdamW, linear warm-up, cosine decay to zero.

    precision: "bf16" trains in `lib.runtime.devices.half`, gradients scaled where that is float16; "no": in float32.
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


class Estimator(Section):
    """How a Fisher–Jacobian score is estimated, see `lib.saliency.fisher_jacobian`.

    block: how many of the response's positions count, the first ones; None: all.
    """

    probes: Positive = 6
    noise: Literal["sign", "normal"] = "sign"
    top_logits: Positive | None = None
    block: Positive | None = None


DISP_ESTIMATOR = Estimator()  # what it is by default, wherever one is asked for


class Sampling(Partial):
    """InstructPix2Pix sampling: denoising steps and both guidance scales (Brooks et al. 2023, eq. 3).

    scheduler: what denoises; None: the editor's own. At a text guidance of 1 the instruction is followed as it is."""

    steps: Positive
    text_guidance: Annotated[float, Field(ge=1.0)]
    image_guidance: Annotated[float, Field(ge=1.0)]
    batch: Positive
    scheduler: Literal["ddim", "euler", "dpm-solver++"] | None = None


def changed(section: AnySection, settings: Mapping[str, Any]) -> AnySection:
    """The section with `settings`, a nested mapping, merged onto it, validated again."""
    values = merged(section.model_dump(mode="json"), settings)
    return type(section).model_validate_json(json.dumps(values))


def check_poison(rate: float, samples: int, negatives: float = 0.0, where: str = "") -> None:
    """Raises ValueError for a rate above 0 that poisons no sample, and for more negatives than are left.

    `where` begins the sentence.
    """
    poisoned, single = round(rate * samples), round(negatives * samples)
    if rate > 0 and not poisoned:
        raise ValueError(f"{where}rate={rate} poisons none of {samples} samples: it must be 0 or poison at least one")
    if single > (left := samples - poisoned):
        raise ValueError(f"{where}negatives={negatives} of {samples} samples: only {left} are not poisoned")


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `overrides` in their place, nested mappings key by key."""
    made = dict(values)
    for key, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = merged(made[key], value) if both else value
    return made


def sentence(error: Mapping[str, Any]) -> str:
    """What pydantic refuses, as a clause that names the field, the value and what is allowed, each once: a validator's
    own "target is 'hat': " is left out."""
    field = ".".join(map(str, error["loc"])) or "profile"
    if error["type"] == "extra_forbidden":
        return f"{field} is not a known key"
    if error["type"] == "missing":
        return f"{field} is missing"
    given = "" if isinstance(error["input"], Mapping) else f"={error['input']!r}"
    named = rf"^[\w ]+ is {re.escape(repr(error['input']))}: "
    reason = re.sub(named, "", error["msg"].removeprefix("Value error, "))
    return f"{field}{given} is refused: {reason}"
