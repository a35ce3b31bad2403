"""DiSP (arXiv 2602.22246): the model answers its own training set again, what matters most hidden, and learns that.

    purified = self_purify(model, questions, ratio=0.3, threshold=0.9)
    fine_tune(model, purified, Train(steps=…))

It needs neither clean data nor a second model.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.defences.interface import Defended, Defender
from lib.models.decoding import Decoded
from lib.models.mdlm import Mdlm
from lib.saliency.by_name import TOKEN_SCORES
from lib.saliency.masking import mask_top
from lib.settings.sections import DISP_ESTIMATOR, Estimator
from lib.tasks.fine_tuning import fine_tune
from lib.tasks.questions import Questions, respond

HALF = 0.5  # of the answers, which `filtered_disp` keeps; chosen before it was measured


def self_purify(
    model: Mdlm,
    questions: Questions,
    *,
    ratio: float,
    threshold: float,
    score: str = "directional",
    estimator: Estimator = DISP_ESTIMATOR,
    batch: int = 128,
    keep: float = 1.0,
    seed: int = 0,
    work: Path | None = None,
) -> Questions:
    """The samples of `questions` with the model's own answers in the place of theirs (steps 1 to 3 of DiSP).

    model       An `Mdlm`, of any network `model.model` that has `logits(vision [batch, token, dim], prompt, response)`,
                `response_logits(vision, prompt)` for decoding, `project(features)` to vision tokens, `mask_embedding`
                [dim], `device`, and a `config` with `vision_length`, `response_length` and `mask_id`; its
                `texts(responses)` reads ids. The score "attention" looks into `MdlmModel`'s own blocks. `fine_tune`
                calls `loss`, by default `masked_diffusion_loss`, for which `states(vision, prompt, response)` and a
                linear `head` must give the logits. tests/test_library.py has such a model.
    ratio       Share of each picture's vision tokens to hide, the highest by `score`, a name of `TOKEN_SCORES`, as
                `estimator` says, of `batch` samples at once.
    threshold   Of decoding, see `lib.tasks.questions.respond`.
    keep        Share of the answers that is learnt, the surest first. 1, the paper's: all.
    work        A folder where scores and answers are kept batch by batch.

    How answers end is `model.end`. Responses are learnt as they were decoded, with whatever stands behind their first
    end token, unless `model.fill` is "absent" or `model.end` "stop"; the authors' are cut there.

    The table's index still names the samples' places in `questions`. Raises ValueError for a share outside (0, 1].
    """
    how = {"estimator": estimator, "batch": batch, "seed": seed}
    scores = TOKEN_SCORES[score](model, questions, **how, work=work and work / "scores")
    again = answer_masked(model, questions, mask_top(scores, ratio), threshold, work and work / "answers")
    return surest_answers(model, questions, again.tokens, again.probability.amin(1), keep)


def answer_masked(
    model: Mdlm,
    questions: Questions,
    masked: Bool[Tensor, "sample vision"],
    threshold: float,
    work: Path | None = None,
) -> Decoded:
    """The model's responses with these vision tokens hidden, and their tokens' probabilities."""
    return respond(model, questions, threshold, masked=masked, label="answer, masked", work=work)


def surest_answers(
    model: Mdlm,
    questions: Questions,
    responses: Int[Tensor, "sample response"],
    sureness: Float[Tensor, " sample"],
    keep: float,
) -> Questions:
    """The questions with the responses in the place of their answers, that share of the surest alone, rounded up.

    sureness: the least probability that a token of the response had when it was settled, of its end and fill too where
    these were decoded (`Decoded`); of equals the earlier is kept. Responses that were decoded shorter than answers are
    learnt end where decoding did. Raises ValueError for a share outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r} must be in (0, 1]")
    order = sureness.argsort(descending=True, stable=True)[: math.ceil(keep * len(sureness))]
    if (short := questions.responses.shape[1] - responses.shape[1]) > 0:
        responses = F.pad(responses, (0, short), value=model.model.config.eos_id)
    return questions.answered(responses, model.texts(responses))[order.sort().values]


def disp(defender: Defender) -> Defended:
    """DiSP: the suspect model learns its own answers under masking (step 4)."""
    model = defender.suspect()
    purified = self_purify(
        model,
        defender.training_set(model),
        ratio=defender.ratio,
        threshold=defender.threshold,
        score=defender.score,
        estimator=defender.estimator,
        batch=defender.batch,
        keep=defender.keep,
        seed=defender.seed,
        work=defender.work,
    )
    work = defender.work and defender.work / "purified"
    how = {"lora": defender.lora, "part": defender.part, "seed": defender.seed}
    fine_tune(model, purified, defender.purify, **how, label="purified MDLM", work=work)
    return Defended(model)


def filtered_disp(defender: Defender) -> Defended:
    """DiSP that learns the surer half of the model's answers: ours, not the paper's."""
    return disp(replace(defender, keep=HALF))


def random_purification(defender: Defender) -> Defended:
    """DiSP with random tokens masked in place of the most salient ones; all else as there."""
    return disp(replace(defender, score="random"))
