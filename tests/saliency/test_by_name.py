import pytest
import tiny
import torch

from lib.models.mdlm import Mdlm
from lib.saliency.by_name import TOKEN_SCORES, directional
from lib.saliency.jacobian import first_positions, fisher_jacobian
from lib.saliency.masking import random_scores
from lib.saliency.rivals import attention_received, late_attention
from lib.saliency.rivals import occlusion as occluded
from lib.settings.load import load_profile
from lib.settings.sections import Estimator
from lib.studies.attacks.mdlm import test_questions

test_questions.__test__ = False

EXPECTED = {
    "directional": lambda model, vision, prompts, k: fisher_jacobian(model, vision, prompts, probes=1, seed=7 + k),
    "trace": lambda model, vision, prompts, k: fisher_jacobian(
        model, vision, prompts, direction="all", probes=1, seed=7 + k
    ),
    "attention": lambda model, vision, prompts, k: attention_received(model, vision, prompts),
    "late-attention": lambda model, vision, prompts, k: late_attention(model, vision, prompts),
    "occlusion": lambda model, vision, prompts, k: occluded(model, vision, prompts),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory, models):
    run = tiny.short_run(tmp_path_factory.mktemp("run"), models, disp={"batch": 2})
    mdlm = Mdlm.load(models["mdlm"])
    return mdlm, test_questions(run, mdlm, 5)[0], {"estimator": Estimator(probes=1), "batch": 2, "seed": 7}


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_are_those_of_every_batch(given, name):
    mdlm, data, settings = given
    scores = TOKEN_SCORES[name](mdlm, data, **settings)
    assert scores.shape == (5, 64)
    for k in range(3):
        part = data[2 * k : 2 * k + 2]
        with torch.no_grad():
            vision = mdlm.model.project(part.features[part.picture])
        with torch.autocast("cpu", torch.bfloat16):
            expected = EXPECTED[name](mdlm.model, vision, part.prompts, k)
        torch.testing.assert_close(scores[2 * k : 2 * k + 2], expected)
    assert TOKEN_SCORES[name](mdlm, data[:0], **settings).shape == (0, 64)


def test_random_scores_look_at_nothing(given):
    mdlm, data, settings = given
    assert torch.equal(TOKEN_SCORES["random"](mdlm, data, **settings), random_scores(5, 64, 7))


def test_more_probes_are_another_estimate(given):
    mdlm, data, settings = given
    first = directional(mdlm, data, **settings)
    for other in (Estimator(probes=2), Estimator(probes=1, top_logits=2), Estimator(probes=1, noise="normal")):
        assert not torch.equal(directional(mdlm, data, **settings | {"estimator": other}), first)


@pytest.mark.parametrize("name", ["directional", "trace"])
def test_of_the_response_the_first_positions_can_count_alone(given, name):
    mdlm, data, settings = given
    length = mdlm.model.config.response_length
    every, first, whole = (
        TOKEN_SCORES[name](mdlm, data, **settings | {"estimator": Estimator(probes=1, block=block)})
        for block in (None, 3, length)
    )
    assert torch.equal(every, whole) and not torch.equal(every, first)
    model, direction = mdlm.model, {"directional": "mask", "trace": "all"}[name]
    with torch.no_grad():
        vision = model.project(data.features[data.picture[:2]])
    with torch.autocast("cpu", torch.bfloat16):
        how = {"direction": direction, "probes": 1, "seed": 7, "positions": torch.arange(length) < 3}
        torch.testing.assert_close(first[:2], fisher_jacobian(model, vision, data.prompts[:2], **how))
    for block in (0, length + 1):
        with pytest.raises(ValueError, match=f"block={block} must be None or from 1 to {length}"):
            first_positions(model, block)


def test_the_profile_names_one_of_them():
    refused = "disp.saliency='luck' is refused: it must be one of directional, trace"
    with pytest.raises(ValueError, match=refused):
        load_profile("laptop", {"disp": {"saliency": "luck"}})
