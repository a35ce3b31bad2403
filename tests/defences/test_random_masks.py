import pytest
import tiny
import torch

from lib.defences import random_masks as module
from lib.defences.interface import Defender
from lib.defences.random_masks import MASKS, SHARE, VOTED, disagreement, vote
from lib.models.decoding import Decoded
from lib.settings.sections import Train

PLAIN = torch.tensor([[1, 2], [3, 4], [5, 6]])
TRAIN = Train(steps=1, batch=1, lr=1e-3)


pytestmark = pytest.mark.usefixtures("untyped")


class Few:
    def __len__(self):
        return 3


def responding(changed):
    """`respond` whose k-th masked answers are PLAIN, those of `changed[k]` samples' first token apart."""
    shares = []

    def respond(mdlm, data, threshold, masked=None, label="", work=None):
        tokens = PLAIN.clone()
        if masked is not None:
            for sample in changed[len(shares)]:
                tokens[sample, 0] = 9
            shares.append(masked.double().mean().item())
        return Decoded(tokens, torch.ones(3, 2, dtype=torch.float64))

    return respond, shares


def test_disagreement_is_the_share_of_tokens_that_masks_change(monkeypatch):
    changed = [[1]] * MASKS
    changed[0] = [1, 2]
    respond, shares = responding(changed)
    monkeypatch.setattr(module, "respond", respond)
    scores = disagreement(tiny.mdlm(), Few(), 0.9, seed=0)
    assert scores.tolist() == [0, 0.5, 0.5 / MASKS]
    assert shares == [int(SHARE * 64) / 64] * MASKS


def test_the_vote_says_what_most_masks_say(monkeypatch):
    changed = [[0]] * 5 + [[0, 1]] * (MASKS - 5)
    respond, shares = responding(changed)
    monkeypatch.setattr(module, "respond", respond)
    mdlm = tiny.mdlm()
    monkeypatch.setattr(type(mdlm), "texts", lambda self, ids: [str(row) for row in ids.tolist()])
    voting = vote(Defender(suspect=lambda: mdlm, training_set=None, threshold=0.9, purify=TRAIN))
    assert voting.answer(Few(), 0.9) == ["[9, 2]", "[3, 4]", "[5, 6]"]
    assert shares == [VOTED] * MASKS
