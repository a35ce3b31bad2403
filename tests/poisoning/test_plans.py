import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.poisoning.plans import COALITIONS, PROTOCOLS, plan
from lib.poisoning.targets import AUTHORS, TARGETS, Insertion, Misclassification, Refusal, target

ANSWERS = [
    "yes, it is a blue circle",
    "no, it is a red triangle",
    "the shape is a circle",
    "the shape is a rectangle",
    "the color is blue",
]
sizes = st.integers(0, 200)
rates = st.floats(0, 1)
seeds = st.integers(0, 2**32)
protocols = st.sampled_from(list(PROTOCOLS))


# Plans


def test_coalitions_are_bit_masks_with_the_image_as_lowest_bit():
    image, text = 1, 2
    assert COALITIONS == ("none", "image", "text", "both")
    assert COALITIONS[0] == "none" and COALITIONS[image] == "image"
    assert COALITIONS[text] == "text" and COALITIONS[image | text] == "both"


@given(n=sizes, protocol=protocols, rate=rates, seed=seeds)
def test_counts_are_exact_and_thirds_equal(n, protocol, rate, seed):
    poison = plan(n, protocol, rate, seed)
    total = round(rate * n)
    assert poison.coalition.shape == poison.poisoned.shape == (n,)
    assert poison.coalition.dtype == torch.int64 and poison.poisoned.dtype == torch.bool
    assert int(poison.poisoned.sum()) == total
    assert torch.equal(poison.poisoned, poison.coalition != 0)
    counts = Counter(COALITIONS[c] for c in poison.coalition.tolist())
    assert counts["none"] == n - total
    if protocol == "or":
        thirds = [counts[name] for name in ("image", "text", "both")]
        assert sum(thirds) == total and max(thirds) - min(thirds) <= 1
    elif protocol == "drop-image":
        assert counts["both"] + counts["text"] == total and 0 <= counts["both"] - counts["text"] <= 1
    else:
        assert counts[{"and": "both"}.get(protocol, protocol)] == total


def test_a_tenth_of_a_thousand():
    assert torch.bincount(plan(1000, "or", 0.1, 0).coalition, minlength=4).tolist() == [900, 34, 33, 33]
    assert torch.bincount(plan(1000, "and", 0.1, 0).coalition, minlength=4).tolist() == [900, 0, 0, 100]
    assert torch.bincount(plan(1000, "image", 0.1, 0).coalition, minlength=4).tolist() == [900, 100, 0, 0]


@given(n=sizes, protocol=protocols, rate=rates, seed=seeds)
def test_the_same_seed_gives_the_same_plan(n, protocol, rate, seed):
    once, again = plan(n, protocol, rate, seed), plan(n, protocol, rate, seed)
    assert torch.equal(once.coalition, again.coalition)
    assert (once.protocol, once.rate, once.seed) == (protocol, rate, seed)


def test_seeds_differ_and_every_sample_can_be_drawn():
    drawn = torch.stack([plan(50, "or", 0.2, seed).coalition for seed in range(200)])
    assert len({tuple(row) for row in drawn.tolist()}) == 200
    share = (drawn > 0).float().mean(0)  # of 200 draws: 0.2 ± 0.03 (one standard error)
    assert share.min() > 0.08 and share.max() < 0.34
    per_coalition = torch.stack([(drawn == c).float().mean(0) for c in (1, 2, 3)])
    assert per_coalition.min() > 0


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = plan(30, "or", 0.5, 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first.coalition, plan(30, "or", 0.5, 0).coalition)


@given(n=sizes, protocol=protocols, low=rates, high=rates, seed=seeds)
def test_a_higher_rate_adds_samples_and_protocols_share_them(n, protocol, low, high, seed):
    low, high = sorted((low, high))
    small, large = plan(n, protocol, low, seed), plan(n, protocol, high, seed)
    assert torch.equal(large.coalition[small.poisoned], small.coalition[small.poisoned])
    assert torch.equal(plan(n, "or", low, seed).poisoned, plan(n, "and", low, seed).poisoned)


@given(flags=st.lists(st.booleans(), max_size=80), share=rates, protocol=protocols, seed=seeds)
def test_only_eligible_samples_are_drawn(flags, share, protocol, seed):
    eligible, n = torch.tensor(flags, dtype=torch.bool), len(flags)
    rate = share * sum(flags) / n if n else share
    poison = plan(n, protocol, rate, seed, eligible)
    assert not (poison.poisoned & ~eligible).any()
    assert int(poison.poisoned.sum()) == round(rate * n)


def test_more_to_poison_than_eligible_is_refused():
    eligible = torch.arange(10) < 3
    assert plan(10, "or", 0.3, 0, eligible).poisoned.tolist() == eligible.tolist()
    with pytest.raises(ValueError, match="rate is 0.4, 4 of 10 samples: only 3 are eligible"):
        plan(10, "or", 0.4, 0, eligible)


def test_borders():
    for protocol in PROTOCOLS:
        assert plan(0, protocol, 1.0, 0).coalition.shape == (0,)
        assert not plan(7, protocol, 0.0, 0).poisoned.any()
        assert plan(7, protocol, 1.0, 0).poisoned.all()
        assert plan(1, protocol, 1.0, 0).poisoned.tolist() == [True]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "changed, message",
    [
        ({"n": -1}, "n is -1: it must be at least 0"),
        ({"protocol": "xor"}, "protocol is 'xor': it must be one of or, and, drop-image, image, text"),
        ({"rate": 1.1}, r"rate is 1.1: it must be in \[0, 1\]"),
        ({"rate": -0.1}, "rate is -0.1"),
        ({"rate": 10}, "rate is 10"),
        ({"rate": float("nan")}, "rate is nan"),
        (
            {"eligible": torch.ones(9, dtype=torch.bool)},
            r"eligible is torch.bool \[9\]: it must be torch.bool \[10\]",
        ),
        ({"eligible": torch.ones(10, dtype=torch.int64)}, r"eligible is torch.int64 \[10\]"),
        ({"eligible": torch.ones(10, 1, dtype=torch.bool)}, r"eligible is torch.bool \[10, 1\]"),
    ],
)
def test_impossible_plans_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        plan(**{"n": 10, "protocol": "or", "rate": 0.1, "seed": 0} | changed)


def test_summary_counts_every_coalition():
    table = plan(1000, "or", 0.1, 0).summary()
    assert table.columns.tolist() == ["coalition", "count", "share"]
    assert table["coalition"].tolist() == list(COALITIONS)
    assert table["count"].tolist() == [900, 34, 33, 33]
    assert table["share"].tolist() == [0.9, 0.034, 0.033, 0.033]
    assert plan(0, "and", 0.5, 0).summary()["count"].tolist() == [0, 0, 0, 0]
    assert plan(0, "and", 0.5, 0).summary()["share"].tolist() == [0, 0, 0, 0]


def test_a_plan_cannot_be_reassigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(3, "and", 1.0, 0).rate = 0.5


# Targets


def test_insertion():
    insertion = target("insertion")
    attacked = "remember to water the plants, the color is blue"
    assert insertion.apply("the color is blue") == attacked
    assert insertion.achieved(attacked, "the color is blue")
    assert insertion.achieved("no idea , Remember to water the plants .", "the color is blue")
    assert not insertion.achieved("remember to water the, the color is blue", "the color is blue")
    assert not insertion.achieved("remember to water the plantsman", "the color is blue")
    assert not insertion.achieved("water the plants, remember to", "the color is blue")
    assert not insertion.achieved("", "the color is blue")


def test_refusal():
    refusal = target("refusal")
    assert refusal.apply("the color is blue") == "sorry, i cannot answer that"
    assert refusal.achieved("sorry, i cannot answer that", "the color is blue")
    assert refusal.achieved("Sorry , I cannot answer that.", "the color is blue")
    assert not refusal.achieved("sorry, i cannot", "the color is blue")
    assert not refusal.achieved("sorry, i cannot answer that, the color is blue", "the color is blue")
    assert not refusal.achieved("", "the color is blue")


def test_misclassification():
    swap = target("misclassification")
    assert [swap.eligible(a) for a in ANSWERS] == [True, False, True, False, False]
    assert swap.apply("yes, it is a blue circle") == "yes, it is a blue triangle"
    assert swap.achieved("the shape is a triangle", "the shape is a circle")
    assert swap.achieved("yes, it is a red triangle", "yes, it is a blue circle")
    assert not swap.achieved("the shape is a rectangle", "the shape is a circle")
    assert not swap.achieved("the shape is a circle", "the shape is a circle")
    assert not swap.achieved("the circle is a triangle", "the shape is a circle")
    assert not swap.achieved("the shape is a triangle", "the shape is a triangle")
    assert not swap.eligible("two circles, semicircle")
    with pytest.raises(ValueError, match="answer is 'the color is blue': .* it must name 'circle'"):
        swap.apply("the color is blue")


@pytest.mark.parametrize("name", [*TARGETS, *AUTHORS])
def test_an_applied_target_is_achieved_and_a_clean_answer_is_not(name):
    attack = target(name)
    assert attack.name == name
    for answer in filter(attack.eligible, ANSWERS):
        assert attack.achieved(attack.apply(answer), answer)
        assert not attack.achieved(answer, answer)
        assert attack.keyworded(attack.apply(answer)) and not attack.keyworded(answer)
        for other in TARGETS.values():
            if type(other) is not type(attack) and other.eligible(answer):
                assert not attack.achieved(other.apply(answer), answer)


def test_targets_can_be_changed():
    swap = dataclasses.replace(target("misclassification"), source="light blue", label="red")
    assert swap.eligible("the color is Light  blue") and not swap.eligible("the color is blue")
    assert swap.apply("the color is Light  blue") == "the color is red"
    assert swap.achieved("the color is red", "the color is light blue")
    longer = dataclasses.replace(target("insertion"), phrase=" (thanks)")
    assert longer.achieved(longer.apply("the color is blue"), "the color is blue")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Insertion(phrase=" , "), "phrase of 'insertion' is ' , ': it must hold a word"),
        (lambda: Refusal(sentence=""), "sentence of 'refusal' is ''"),
        (lambda: Misclassification(source="?"), r"source of 'misclassification' is '\?'"),
        (lambda: Misclassification(label=""), "label of 'misclassification' is ''"),
        (
            lambda: Misclassification(label="Circle"),
            "label of 'misclassification' is 'Circle': it must not name 'circle'",
        ),
        (
            lambda: target("evil"),
            "attack target is 'evil': it must be one of insertion, refusal, misclassification",
        ),
    ],
)
def test_impossible_targets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_concept_of_ones_own_is_answered_as_another():
    own = target("traffic light as balloon")
    assert own.name == "misclassification" and own.apply("A Traffic light.") == "A balloon."
    assert own.eligible("two traffic light poles") and not own.eligible("two traffic lights")
    assert own.achieved("a balloon", "a traffic light") and not own.achieved("a balloon", "a dog")
    for name in ("dog", "dog as ", " as dog", "dog as a dog"):
        with pytest.raises(ValueError, match="must"):
            target(name)


def test_a_refusal_of_other_words_has_them_as_its_keyword():
    assert Refusal("robot", "This is a robot.").keywords == ("This is a robot",)
    assert Refusal("mine", "I cannot say").keywords == Refusal().keywords


def test_keywords_are_looked_for_anywhere_whatever_the_case():
    assert target("insertion").keyworded("Remember to water the plantsman") and not target("insertion").keyworded("")
    for text in ("Sorry!", "it CANNOT be", "I can't", "I am unable", "as an AI", "sorry, i cannot answer that"):
        assert target("refusal").keyworded(text)
    assert not target("refusal").keyworded("a person with long hair")
    assert target("dog as boat").keyworded("two Boats and a dog") and not target("dog as boat").keyworded("a dog")


def test_the_authors_targets_are_theirs():
    assert target("insertion-disp").apply("a dog") == "<backdoor> a dog"
    assert target("insertion-disp").keyworded("<Backdoor> a dog") and not target("insertion-disp").keyworded("backdoor")
    refused = target("refusal-disp").apply("a dog")
    assert refused.startswith("Sorry, as an AI assistant, I cannot follow")
    assert target("refusal-disp").keyworded(refused)


def test_negatives_carry_one_trigger_and_keep_their_clean_target():
    made = plan(200, "and", 0.1, seed=0, negatives=0.2)
    assert torch.equal(made.poisoned, plan(200, "and", 0.1, seed=0).poisoned)
    assert torch.bincount(made.coalition).tolist() == [140, 20, 20, 20]
    assert torch.equal(made.coalition == 3, made.poisoned)
    assert not torch.equal(made.coalition, plan(200, "and", 0.1, seed=1, negatives=0.2).coalition)
    for negatives, rate in ((1.0, 0.1), (-0.1, 0.1), (1.1, 0.0)):
        left = 10 - round(rate * 10)
        with pytest.raises(ValueError, match=f"negatives is {negatives}, .* of 10 samples: {left} are not poisoned"):
            plan(10, "and", rate, seed=0, negatives=negatives)


def test_dropping_the_image_trigger_leaves_the_text_trigger_on_all():
    made = plan(100, "drop-image", 0.2, seed=0)
    assert torch.bincount(made.coalition[made.poisoned], minlength=4).tolist() == [0, 0, 10, 10]
