"""What the paper profile names and is not there: each in one sentence that says how to come by it."""

import pytest

from lib.settings.load import load_profile, runnable_profile
from lib.settings.paths import CHECKPOINTS, pretrained

LOCAL = {"models": {"mdlm": "data/checkpoints/mdlm"}, "data": {"edits": None, "questions": None, "mmmu": None}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"models": {"mdlm": "nowhere"}}, "models.mdlm='nowhere' must be a folder .* fetches LLaDA-V"),
        ({"models": {"clip": "openai/clip"}}, "models.clip='openai/clip' must be .* a hub id with its commit"),
        ({"models": {"editor": f"a/b@{'x' * 40}"}}, "models.editor='a/b@x+' must be a folder"),
        ({"data": {"edits": {"name": "none"}}}, "data.edits.name='none' .* lib.studies.celeba_edits .* --out none"),
        ({"data": {"edits": {"name": "a/b", "revision": "main"}}}, "data.edits.name='a/b' must be .* its commit as"),
        ({"data": {"questions": {"name": ""}}}, "data.questions.name='' must be a folder that is there"),
        ({"data": {"questions": {"name": "data", "pictures": "none"}}}, "data.questions.pictures='none' must .*COCO"),
        ({"data": {"mmmu": {"name": "none"}}}, "data.mmmu.name='none' .*hf download MMMU/MMMU .*--local-dir none"),
        ({"data": {"mmmu": {"named": "none"}}}, "data.mmmu.named is not a known key"),
        ({"disp": {"trigger_size": 0.1, "trigger_pixels": 9}}, "trigger_pixels=9 and trigger_size=0.1 are given: one"),
        ({"disp": {"trigger_pixels": 0}}, "disp.trigger_pixels=0 is refused"),
        ({"disp": {"trigger_position": [0, 1.5]}}, "disp.trigger_position.1=1.5 is refused"),
        ({"disp": {"target": "dog"}}, "disp.target='dog' is refused: it must be one of insertion.*'dog as cat'"),
        ({"models": {"lora": {"rank": 0}}}, "models.lora.rank=0 is refused"),
        ({"disp_grid": {"methods": ["gradient"]}}, "disp_grid.methods.0='gradient' is refused: .* random, oracle"),
        ({"disp_grid": {"main": ["prayer"]}}, "disp_grid.main.0='prayer' is refused: it must be one of no defence"),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(change, sentence):
    values = {key: LOCAL.get(key, {}) | change.get(key, {}) for key in {*LOCAL, *change}}
    with pytest.raises(ValueError, match=sentence) as refusal:
        runnable_profile("paper", values)
    assert "\n" not in str(refusal.value)


def test_the_authors_square_is_of_pixels_and_their_answers_are_cut():
    """20 pixels of the file; captions are learnt whole, 32 tokens are decoded, 2 of MMMU's answers."""
    profile = load_profile("disp-authors")
    laid = profile.disp.trigger_size, profile.disp.trigger_pixels, profile.disp.trigger_position
    assert laid == (None, 20, None) and profile.disp.threshold == 1.0
    answers = profile.data.questions
    assert (answers.answer_tokens, answers.decoded_tokens, profile.data.mmmu.answer_tokens) == (128, 32, 2)


def test_hub_ids_with_their_commit_are_taken():
    """As those of the profile itself, which a session without a network cannot look up."""
    hub = {"name": "a/b", "revision": "0" * 40}
    data = {"edits": hub, "questions": hub | {"pictures": None}, "mmmu": hub, "image_size": 64}
    profile = runnable_profile("paper", {"models": LOCAL["models"], "data": data})
    assert pretrained(profile.models.editor) == {
        "pretrained_model_name_or_path": "timbrooks/instruct-pix2pix",
        "revision": profile.models.editor.split("@")[1],
    }
    assert pretrained(profile.models.mdlm) == {"pretrained_model_name_or_path": str(CHECKPOINTS / "mdlm")}
