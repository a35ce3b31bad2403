"""CleanSight beside its formulas in float64, and end to end on a tiny model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_llada_v
import torch
from tiny import noise, pictures

from lib.defences import attention_stealing
from lib.defences.attention_stealing import attention_ratio, calibrated, cleansight, thieves, watch, watched_layers
from lib.defences.interface import CLEAN_DATA, Defender
from lib.models.llada import IMAGE
from lib.saliency.rivals import response_attention
from lib.settings.sections import Train


@pytest.fixture
def mdlm():
    return tiny.lively(tiny.mdlm(layers=4))


def maps(samples, heads, positions, seed=0):
    return noise(samples, heads, positions, seed=seed).double().mul(2).softmax(-1)


def reference(clean, tested, vision):
    """Eqs. of arXiv 2603.12989 one number at a time: scores of `tested` and whether poisoned."""

    def ratios(sample, words):
        asked = [vision + k for k, word in enumerate(words) if word]
        return [sum(head[:vision]) / sum(head[k] for k in asked) for head in sample]

    seen = np.array([ratios(sample.tolist(), row.tolist()) for sample, row in zip(*clean, strict=True)])
    mu, sigma = seen.mean(0), np.sqrt(((seen - seen.mean(0)) ** 2).mean(0))

    def score(row):
        return math.sqrt(sum(((r - m) / s) ** 2 for r, m, s in zip(row, mu, sigma, strict=True)))

    scores = sorted(score(row) for row in seen)
    place = 0.99 * (len(scores) - 1)
    low = math.floor(place)
    gamma = scores[low] + (place - low) * (scores[min(low + 1, len(scores) - 1)] - scores[low])
    found = [score(ratios(sample.tolist(), row.tolist())) for sample, row in zip(*tested, strict=True)]
    return found, [value > gamma for value in found]


@pytest.mark.parametrize(("samples", "heads", "vision", "prompt"), [(37, 6, 9, 4), (200, 15, 64, 16), (3, 1, 1, 1)])
def test_scores_and_verdicts_are_the_papers_on_random_attention(samples, heads, vision, prompt):
    clean, tested = (maps(samples, heads, vision + prompt, seed) for seed in (0, 1))
    tested[0, :, 0] += 1e4  # steals
    tested = tested / tested.sum(-1, keepdim=True)
    text = torch.ones(samples, prompt, dtype=torch.bool)
    text[1::2, prompt // 2 + 1 :] = False
    scores, poisoned = reference((clean, text), (tested, text), vision)
    normal = calibrated(attention_ratio(clean, vision, text))
    found = normal.distance(attention_ratio(tested, vision, text))
    torch.testing.assert_close(found, torch.tensor(scores, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert (found > normal.threshold).tolist() == poisoned and poisoned[0]
    over = int((normal.distance(attention_ratio(clean, vision, text)) > normal.threshold).sum())
    assert over == math.ceil(0.01 * (samples - 1))


def test_watched_are_layers_10_to_24_of_32_and_the_same_share_of_others():
    assert watched_layers(32) == range(10, 25)
    assert [list(watched_layers(depth)) for depth in (1, 2, 4, 8)] == [[0], [0, 1], [1, 2, 3], [2, 3, 4, 5, 6]]


def test_a_thief_gets_more_than_0_02_of_a_heads_attention_among_576_tokens():
    most = torch.full((1, 576), 0.0199, dtype=torch.float64)
    most[0, 7] = 0.0201
    assert thieves(most).nonzero().tolist() == [[0, 7]]
    few = torch.tensor([[0.17, 0.19, 0.0, 0.0] + [0.0] * 60], dtype=torch.float64)  # 11.52 / 64 = 0.18
    assert thieves(few).nonzero().tolist() == [[0, 1]]


def test_nothing_is_flagged_where_all_are_alike_and_one_clean_sample_is_enough():
    for samples in (1, 4):
        alike = torch.full((samples, 6), 0.4, dtype=torch.float64)
        normal = calibrated(alike)
        assert normal.threshold == 0 and not (normal.distance(alike) > normal.threshold).any()
    with pytest.raises(ValueError, match="clean_share has no samples: CleanSight needs one at least"):
        calibrated(alike[:0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mdlm", "LLaDA-V"])
def test_every_head_of_every_watched_layer_is_watched_in_batches(mdlm, tmp_path, kind):
    """Head by head: over the words that are no padding and, of LLaDA-V's prompts, stand behind the picture."""
    data, layers = pictures(noise(3, 64, 32)), [1, 2, 3]
    data.prompts[1:, 6:] = mdlm.model.config.pad_id
    if kind == "LLaDA-V":
        mdlm, layers = tiny_llada_v.llada_v(tmp_path), [0, 1]
        features = mdlm.model.features(torch.rand(3, 3, *mdlm.model.config.picture))
        data = replace(data, features=features, prompts=mdlm.prompts(["what is it?", "is it?", "what?"]))
    config = mdlm.model.config
    vision = mdlm.model.project(data.features)
    weights = response_attention(mdlm.model, vision, data.prompts, lambda weight: weight.double())
    count, expected, most = vision.shape[1], [], []
    for row, words in enumerate(data.prompts.tolist()):
        start = words.index(IMAGE) + 1 if IMAGE in words else 0
        asked = [count + k for k, word in enumerate(words) if k >= start and word != config.pad_id]
        heads = [head.mean(0) for k in layers for head in weights[k][row]]
        expected.append([float(head[:count].sum() / head[asked].sum()) for head in heads])
        most.append([max(float(head[k]) for head in weights[layers[-1]][row].mean(1)) for k in range(count)])
    assert kind == "mdlm" or start > 1
    for batch in (2, 128):
        found = watch(mdlm, data, batch)
        torch.testing.assert_close(found.ratios, torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.most, torch.tensor(most).double(), rtol=1e-4, atol=1e-7)
    if kind == "mdlm":
        none = watch(mdlm, data[:0], batch=2)
        assert none.ratios.shape == (0, len(expected[0])) and none.most.shape == (0, count)


NOTHING = Train(steps=1, batch=1, lr=0.1)


def defender(mdlm, clean):
    samples = {"training_set": lambda _: clean, "clean_share": lambda _: clean}
    return Defender(suspect=lambda: mdlm, threshold=0.5, purify=NOTHING, **samples)


@pytest.fixture
def asked(monkeypatch):
    """What was to be answered, and how; nothing is."""
    calls = []

    def answer(mdlm, data, threshold, unseen, work):
        calls.append((data, threshold, unseen, work))
        return [""] * len(data)

    monkeypatch.setattr(attention_stealing, "answer", answer)
    return calls


def test_a_flagged_question_is_answered_without_the_thieves_and_others_as_ever(mdlm, asked, monkeypatch, tmp_path):
    usual = noise(1, 64, 32) + 0.01 * noise(60, 64, 32, seed=1)
    data = pictures(torch.cat([noise(1, 64, 32), noise(2, 64, 32, seed=3)]))
    made = cleansight(defender(mdlm, pictures(usual)))
    assert made.knows == CLEAN_DATA and made.mask is made.flag is None
    most = watch(mdlm, data, batch=128).most
    for even_shares in (0.6, 1.0):
        monkeypatch.setattr(attention_stealing, "PRUNED", even_shares)
        assert made.answer(data, 0.5, tmp_path) == [""] * 3
        given, threshold, unseen, work = asked.pop()
        assert given is data and (threshold, work) == (0.5, tmp_path)
        hidden = most > even_shares / 64
        hidden[0] = False  # as the clean ones are
        assert unseen.layer == 3 and torch.equal(unseen.tokens, hidden) and hidden[1:].any(1).all()


def test_what_the_clean_share_holds_is_not_flagged(mdlm, asked, monkeypatch):
    monkeypatch.setattr(attention_stealing, "PRUNED", 0.0)  # all tokens are thieves
    data = pictures(noise(1, 64, 32))
    cleansight(defender(mdlm, data)).answer(data, 0.5)
    assert not asked[0][2].tokens.any()
    with pytest.raises(ValueError, match="clean_share has no samples"):
        cleansight(defender(mdlm, data[:0]))
