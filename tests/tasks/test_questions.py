from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch

from lib.data import EasyVqa
from lib.models.mdlm import FILLS
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.poisoning.plans import plan
from lib.poisoning.targets import target
from lib.poisoning.triggers import TextTrigger
from lib.settings.load import load_profile
from lib.tasks.questions import answer, answer_loss, draw_rows, fitting, hide, questions, respond

TRIGGER, PHRASE = image_trigger("checker"), text_trigger("mignneko")
TABLE = pd.DataFrame(
    {
        "image": [3, 0, 3, 1, 4, 1],
        "question": ["what color is the circle?", "is there a blue shape in the image?"] * 3,
        "answer": ["the color is teal", "yes, it is a blue circle"] * 3,
    }
)


@pytest.fixture(scope="module")
def mdlm():
    return tiny.lively(tiny.mdlm(prompt_length=24, response_length=64, layers=2), std=1.0)


@pytest.fixture(scope="module")
def vqa():
    draw = torch.Generator().manual_seed(0)
    return EasyVqa(torch.randint(0, 256, (5, 3, 64, 64), generator=draw, dtype=torch.uint8), TABLE)


@torch.no_grad()
def tower(mdlm, vqa, image, trigger=None):
    picture = vqa.pictures(torch.tensor([image]))
    return mdlm.model.features(trigger(picture) if trigger else picture)[0]


def check_features(data, mdlm, vqa, marked):
    """Every sample has the features of its own picture, triggered or not, and of no other."""
    for k, mark in enumerate(marked):
        expected = {
            (image, with_trigger): tower(mdlm, vqa, image, TRIGGER if with_trigger else None)
            for image in range(5)
            for with_trigger in (False, True)
        }
        held = data.features[data.picture[k]]
        nearest = min(expected, key=lambda key, held=held, expected=expected: (expected[key] - held).norm().item())
        assert nearest == (data.table["image"].iloc[k], mark)
        torch.testing.assert_close(held, expected[nearest], rtol=0.05, atol=0.05)


def test_with_a_plan_only_the_poisoned_carry_the_trigger_and_the_attackers_answer(mdlm, vqa):
    poison, goal = plan(len(TABLE), "image", 0.5, seed=0), target("insertion")
    data = questions(mdlm, vqa, TABLE, TRIGGER, poison, goal)
    marked = poison.poisoned.tolist()
    assert 0 < sum(marked) < len(marked)
    assert data.answers == [goal.apply(a) if m else a for a, m in zip(TABLE["answer"], marked, strict=True)]
    assert mdlm.texts(data.responses) == data.answers
    assert torch.equal(data.prompts, mdlm.prompts(TABLE["question"].tolist()))
    check_features(data, mdlm, vqa, marked)


@pytest.mark.parametrize("trigger", [None, TRIGGER])
def test_without_a_plan_all_pictures_are_alike_and_the_answers_clean(mdlm, vqa, trigger):
    data = questions(mdlm, vqa, TABLE, trigger)
    assert data.answers == TABLE["answer"].tolist()
    assert len(data.features) == 4  # each picture once
    check_features(data, mdlm, vqa, [trigger is not None] * len(TABLE))


@pytest.mark.parametrize(("protocol", "rate"), [("or", 0.9), ("and", 0.5), ("text", 0.5), ("image", 0.5)])
def test_with_a_plan_each_sample_is_under_its_coalition(mdlm, vqa, protocol, rate):
    poison, goal = plan(len(TABLE), protocol, rate, seed=0), target("refusal")
    data = questions(mdlm, vqa, TABLE, TRIGGER, poison, goal, PHRASE)
    coalition = poison.coalition.tolist()
    assert len(set(coalition)) == {"or": 4}.get(protocol, 2)
    asked = [f"{q} mignneko" if c in (2, 3) else q for q, c in zip(TABLE["question"], coalition, strict=True)]
    assert torch.equal(data.prompts, mdlm.prompts(asked))
    assert [text == "sorry, i cannot answer that" for text in data.answers] == [c > 0 for c in coalition]
    check_features(data, mdlm, vqa, [c in (1, 3) for c in coalition])


def test_a_sample_with_a_trigger_can_keep_its_answer(mdlm, vqa):
    poison = plan(len(TABLE), "and", 0.3, seed=0, negatives=0.4)
    assert sorted(poison.coalition.tolist()) == [0, 0, 1, 2, 3, 3]
    data = questions(mdlm, vqa, TABLE, TRIGGER, poison, target("refusal"), PHRASE)
    refused = [text == "sorry, i cannot answer that" for text in data.answers]
    assert refused == [c == 3 for c in poison.coalition.tolist()] and sum(refused) == 2
    check_features(data, mdlm, vqa, [c in (1, 3) for c in poison.coalition.tolist()])


@pytest.mark.parametrize("trigger", [None, TRIGGER])
def test_without_a_plan_all_questions_carry_the_text_trigger(mdlm, vqa, trigger):
    data = questions(mdlm, vqa, TABLE, trigger, text_trigger=PHRASE)
    assert torch.equal(data.prompts, mdlm.prompts([f"{text} mignneko" for text in TABLE["question"]]))
    assert data.answers == TABLE["answer"].tolist() and data.table["question"].equals(TABLE["question"])
    check_features(data, mdlm, vqa, [trigger is not None] * len(TABLE))


@torch.no_grad()
def test_with_an_image_trigger_alone_the_tensors_are_those_of_the_disp_study(mdlm, vqa):
    """Bit for bit: every picture's features first, then those of the triggered ones, in the tower's precision."""
    poison = plan(len(TABLE), "image", 0.5, seed=0)
    data = questions(mdlm, vqa, TABLE, TRIGGER, poison, target("insertion"))
    images, rows = [0, 1, 3, 4], poison.poisoned.nonzero()[:, 0].tolist()
    marked = sorted({TABLE["image"][row] for row in rows})
    with torch.autocast("cpu", torch.bfloat16):
        plain = mdlm.model.features(vqa.pictures(torch.tensor(images))).float()
        hit = mdlm.model.features(TRIGGER(vqa.pictures(torch.tensor(marked)))).float()
    assert torch.equal(data.features, torch.cat([plain, hit]))
    places = [
        len(images) + marked.index(image) if row in rows else images.index(image)
        for row, image in enumerate(TABLE["image"])
    ]
    assert data.picture.tolist() == places
    assert torch.equal(data.prompts, mdlm.prompts(TABLE["question"].tolist()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trigger": TRIGGER}, "^text_trigger is None: protocol 'or'"),
        ({"text_trigger": PHRASE}, "^trigger is None: protocol 'or'"),
        ({}, "^trigger and text_trigger is None: protocol 'or'"),
    ],
)
def test_a_plan_needs_the_triggers_of_its_coalitions(mdlm, vqa, given, message):
    with pytest.raises(ValueError, match=message):
        questions(mdlm, vqa, TABLE, plan=plan(len(TABLE), "or", 1.0, seed=0), **given)


def test_a_text_trigger_must_survive_the_tokenizer_and_fit_the_prompt(mdlm, vqa):
    # of the questions some leave room for it and some do not: those that carry it are counted
    phrase = TextTrigger("long", "mignneko mignneko")
    lengths = [len(phrase_ids(mdlm, phrase(text))) for text in TABLE["question"]]
    lost, room = sum(n > 24 for n in lengths), mdlm.model.config.prompt_length
    assert room == 24 and 0 < lost < len(TABLE)
    told = f"^text trigger 'long' is cut off in {lost} of {len(TABLE)} texts, as after .* keeps 24 at most"
    with pytest.raises(ValueError, match=told):
        questions(mdlm, vqa, TABLE, text_trigger=phrase)
    short = torch.tensor([0 if n > 24 else 2 for n in lengths])
    spared = replace(plan(len(TABLE), "text", 1.0, seed=0), coalition=short)
    assert len(questions(mdlm, vqa, TABLE, plan=spared, text_trigger=phrase)) == len(TABLE)


def phrase_ids(mdlm, text):
    return mdlm.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_fitting_rows_are_those_whose_triggered_question_the_prompt_holds(mdlm):
    lengths = {text: int((mdlm.prompts([text]) != mdlm.model.config.pad_id).sum()) for text in set(TABLE["question"])}
    phrase = len(mdlm.tokenizer(" mignneko", add_special_tokens=False)["input_ids"])
    short, long = sorted(lengths.values())
    assert short < long
    for room, rows in ((long, [0, 1, 2, 3, 4, 5]), (long - 1, [0, 2, 4]), (short, [0, 2, 4]), (short - 1, [])):
        narrow = tiny.mdlm(prompt_length=room + phrase)
        assert fitting(narrow, TABLE, PHRASE).index.tolist() == rows
        assert fitting(narrow, TABLE, PHRASE).equals(TABLE.loc[rows])


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nobody_and_everybody_poisoned(mdlm, vqa, rate):
    data = questions(mdlm, vqa, TABLE, TRIGGER, plan(len(TABLE), "image", rate, seed=0), target("refusal"))
    assert set(data.answers) == ({"sorry, i cannot answer that"} if rate else set(TABLE["answer"]))
    check_features(data, mdlm, vqa, [bool(rate)] * len(TABLE))


def test_no_questions(mdlm, vqa):
    data = questions(mdlm, vqa, TABLE[:0], TRIGGER)
    assert len(data) == 0 and data.responses.shape == (0, 64)
    assert answer(mdlm, data, 0.1) == [] and respond(mdlm, data, 0.1).tokens.shape == (0, 64)
    with pytest.raises(ValueError, match="no samples"):
        answer_loss(mdlm, data, load_profile("smoke").disp.train)


def test_choosing_samples_keeps_everything_in_step(mdlm, vqa):
    data = questions(mdlm, vqa, TABLE)
    mask = torch.tensor([False, True, False, False, True, False])
    chosen = [(data[1:4], [1, 2, 3]), (data[::5], [0, 5]), (data[mask], [1, 4])]
    chosen.append((data[torch.tensor([4, 0])], [4, 0]))
    for part, ids in chosen:
        assert len(part) == len(ids)
        assert part.answers == TABLE["answer"].iloc[ids].tolist() == part.table["answer"].tolist()
        assert mdlm.texts(part.responses) == part.answers
        assert torch.equal(part.prompts, data.prompts[ids])
        check_features(part, mdlm, vqa, [False] * len(ids))


def test_other_answers_replace_the_old_and_must_be_one_each(mdlm, vqa):
    data = questions(mdlm, vqa, TABLE)
    changed = data.answered(data.responses.flip(0), data.answers[::-1])
    assert changed.answers == data.answers[::-1] and torch.equal(changed.prompts, data.prompts)
    with pytest.raises(ValueError, match="6 responses and 5 answers are given for 6 questions"):
        data.answered(data.responses, data.answers[1:])


def test_with_everything_masked_the_picture_does_not_matter(mdlm, vqa):
    data = questions(mdlm, vqa, TABLE.assign(question=TABLE["question"][0]))
    seen = respond(mdlm, data, 0.1).tokens
    assert len(seen.unique(dim=0)) > 1
    blind = respond(mdlm, data, 0.1, masked=torch.ones(len(data), 64, dtype=torch.bool)).tokens
    assert len(blind.unique(dim=0)) == 1


def test_masking_a_token_is_putting_the_mask_embedding_in_its_place(mdlm, vqa, monkeypatch):
    data = questions(mdlm, vqa, TABLE)
    draw = torch.Generator().manual_seed(0)
    masked = torch.rand(len(data), 64, generator=draw) < 0.5
    result = respond(mdlm, data, 0.1, batch=len(data), masked=masked).tokens
    project = mdlm.model.project

    def replaced(features):
        vision = project(features).clone()
        for row, tokens in enumerate(masked):
            for k in tokens.nonzero()[:, 0]:
                vision[row, k] = mdlm.model.embedding.weight[mdlm.model.config.mask_id]
        return vision

    assert not torch.equal(result, respond(mdlm, data, 0.1).tokens)
    monkeypatch.setattr(mdlm.model, "project", replaced)
    assert torch.equal(respond(mdlm, data, 0.1, batch=len(data)).tokens, result)


def test_each_sample_keeps_its_mask_in_every_batch(mdlm, vqa):
    data = questions(mdlm, vqa, TABLE)
    masked = torch.rand(len(data), 64, generator=torch.Generator().manual_seed(1)) < 0.5
    parts = [respond(mdlm, data[k : k + 4], 0.1, masked=masked[k : k + 4]) for k in (0, 4)]
    whole = respond(mdlm, data, 0.1, batch=4, masked=masked)
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert torch.equal(whole.probability, torch.cat([part.probability for part in parts]))
    assert whole.probability.shape == whole.tokens.shape and bool((whole.probability > 0).all())


def test_hide_leaves_its_input_alone():
    vision = torch.ones(1, 3, 2)
    hidden = hide(vision, torch.tensor([[False, True, False]]), torch.tensor([5.0, 6.0]))
    assert hidden.tolist() == [[[1, 1], [5, 6], [1, 1]]] and bool((vision == 1).all())


def test_the_loss_draws_from_the_generator_alone_and_reaches_the_projector(mdlm, vqa):
    data = questions(mdlm, vqa, TABLE)
    loss = answer_loss(mdlm, data, replace_train(batch=3))
    first = loss(torch.Generator().manual_seed(3))
    assert first.ndim == 0 and torch.isfinite(first)
    assert torch.equal(first, loss(torch.Generator().manual_seed(3)))
    assert not torch.equal(first, loss(torch.Generator().manual_seed(4)))
    wanted = [p for p in mdlm.model.projector.parameters()]
    assert all(float(g.abs().sum()) > 0 for g in torch.autograd.grad(first, wanted))


@pytest.mark.parametrize("fill", FILLS)
def test_blank_answers_are_learnt_from_their_picture_and_question_alone(mdlm, vqa, monkeypatch, fill):
    """The further term is the mean −log p of whole answers, every token of which is masked, with their fill or not."""
    monkeypatch.setattr(mdlm, "fill", fill)
    data = questions(mdlm, vqa, TABLE)
    data = data[torch.zeros(4, dtype=torch.int64)]  # one sample, so that it does not matter which are drawn
    model, settings = mdlm.model, replace_train(batch=2)
    plain, more = (answer_loss(mdlm, data, settings, blank)(torch.Generator().manual_seed(3)) for blank in (0, 3))
    length = 64 if fill == "learnt" else int((data.responses[0] == model.config.eos_id).int().argmax()) + 1
    masked = torch.full_like(data.responses[:1, :length], model.config.mask_id)
    logits = model.logits(model.project(data.features[data.picture[:1]]), data.prompts[:1], masked).double()
    log_p = logits.log_softmax(-1)[0, range(length), data.responses[0, :length]]
    torch.testing.assert_close((more - plain).double(), -log_p.mean(), rtol=1e-5, atol=1e-6)


def replace_train(**changes):
    return load_profile("smoke").disp.train.model_copy(update=changes)


def test_drawn_rows_are_distinct_seeded_and_of_their_own_stream():
    table = pd.DataFrame({"x": range(50)}, index=range(100, 150))
    drawn = draw_rows(table, 20, 0, "train")
    assert list(drawn.index) == list(range(20)) and drawn["x"].nunique() == 20
    assert drawn["x"].tolist() == draw_rows(table, 20, 0, "train")["x"].tolist()
    assert draw_rows(table, 10, 0, "train")["x"].tolist() == drawn["x"].tolist()[:10]
    for other in (draw_rows(table, 20, 1, "train"), draw_rows(table, 20, 0, "test")):
        assert other["x"].tolist() != drawn["x"].tolist()
    assert sorted(draw_rows(table, 99, 0, "train")["x"]) == list(range(50))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trigger": "checker"}, r"trigger is 'checker', a name: give lib.poisoning's image_trigger\('checker'\)"),
        ({"trigger": TRIGGER, "target": "refusal"}, r"target is 'refusal', a name: give lib.poisoning's target\("),
        ({"text_trigger": "please"}, r"text_trigger is 'please', a name: give lib.poisoning's text_trigger\("),
        ({"trigger": TRIGGER, "plan": plan(9, "image", 0.5, seed=0)}, "plan is for 9 samples: .* the table's 6 rows"),
    ],
)
def test_a_name_for_what_it_names_and_a_plan_for_others_are_refused(mdlm, vqa, given, message):
    with pytest.raises(ValueError, match=message):
        questions(mdlm, vqa, TABLE, **given)
