"""What a profile says of what the studies start from: models and data."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lib.settings.names import EDIT_SETS, QUESTION_SETS, known
from lib.settings.sections import Lora, Partial, Positive, Section

VALIDATION = 0.1  # of the training identities
MOST_FACES = 200_000  # identities: beyond it one-attribute neighbours in other splits become frequent


class Models(Partial):
    """Where the models lie: folders below the repository, other local folders, or hub ids with their commit, as in
    `openai/clip-vit-large-patch14@32bd…`.

    control: the editor under a text encoder that knows the edit instructions alone, if there is one. dino: a DINOv2, in
    which v is measured too. part: what is trained of the MDLM: "all" weights, in float32, the "projector" alone, or the
    adapters `lora`, of the last two the rest staying as it is, in bfloat16; None: `lora` where there is one, else all.
    editor_lora: what is trained of the editor's U-Net; None: all of it.
    """

    clip: str
    editor: str
    mdlm: str
    control: str | None = None
    dino: str | None = None
    part: Literal["all", "projector", "lora"] | None = None
    lora: Lora | None = None
    editor_lora: Lora | None = None

    @model_validator(mode="after")
    def part_fits_lora(self) -> Models:
        if self.part and (self.part == "lora") != bool(self.lora):
            raise ValueError(f"part={self.part!r} must be 'lora' where lora is given, and only there")
        return self

    @property
    def frozen(self) -> bool:
        """Whether most of the MDLM's weights stay as they are."""
        return bool(self.lora) or self.part == "projector"


class EditSet(Partial):
    """Edit triples of photographs: a folder, or a hub data set at a commit (`lib.data.photo_edits`).

    columns: what it calls source, instruction and target.
    """

    name: str
    revision: str | None = None
    columns: tuple[str, str, str] | None = None


class QuestionSet(Partial):
    """An instruction set in LLaVA's format (`lib.data.llava`): `file` in a folder or a hub data set at a commit.

    pictures: the folder that its paths are relative to. question_tokens, answer_tokens: the longest that are asked and
    answered, the conversation's template apart; longer ones are left out. decoded_tokens: after so many a model's own
    answers are cut; None: after `answer_tokens`.
    """

    name: str
    revision: str | None = None
    file: str = "llava_instruct_150k.json"
    pictures: str | None = None
    question_tokens: Positive = 128
    answer_tokens: Positive = 128
    decoded_tokens: Positive | None = None


class Mmmu(Partial):
    """MMMU's validation questions, of which `questions` are asked (all 900 where it has no more).

    answer_tokens: after so many the answers to them are cut; None: after as many as other answers.
    """

    name: str
    revision: str | None = None
    questions: Positive = 900
    answer_tokens: Positive | None = None


class FaceSet(Section):
    """How many identities are drawn; a tenth of `train` is for validation (`lib.data.faces`)."""

    train: Positive = 12_000
    test: Positive = 1_500

    @model_validator(mode="after")
    def splits(self) -> FaceSet:
        check_counts(self.train, self.test)
        return self


def check_counts(train: int, test: int) -> None:
    """Raises ValueError for numbers of identities that the split cannot give."""
    least = round(1 / VALIDATION)
    if train < least or test < 1 or train + test > MOST_FACES:
        raise ValueError(
            f"data.faces.train={train} and test={test} cannot be split: train must be at least {least} (a tenth is for "
            f"validation), test at least 1, and both together at most {MOST_FACES}"
        )


def _known(field: str, listed: list[str], value: Any) -> Any:
    """The value; a name alone must be one that is listed."""
    return known(field, value, ("{name: a folder or hub id}", *listed)) if isinstance(value, str) else value


class Data(Partial):
    """`image_size` in pixels a side; `held_out`: the share of photographs that are for testing. `edits` and
    `questions`: photographs in the place of the faces, or what is registered by that name (`lib.data.registry`), as
    "easy-vqa" is. `mmmu`: a measure of clean performance beside the answers'."""

    image_size: Annotated[int, Field(ge=32, multiple_of=8)]
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)]
    faces: FaceSet = Field(default_factory=FaceSet)
    edits: Annotated[EditSet | str | None, BeforeValidator(partial(_known, "edits", EDIT_SETS))] = None
    questions: Annotated[QuestionSet | str | None, BeforeValidator(partial(_known, "questions", QUESTION_SETS))] = None
    mmmu: Mmmu | None = None
