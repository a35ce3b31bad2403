"""The library alone: DiSP on a model of one's own, without profiles, store or studies."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.defences import Defender, disp, self_purify
from lib.models import Mdlm
from lib.saliency import fisher_jacobian, mask_top
from lib.settings.sections import Train
from lib.tasks import Questions, answer, fine_tune

MASK, END, HIT = 0, 1, 6  # ids; 2 to 5 name the colours
COLOURS, TOKENS, TRIGGER = 4, 8, 7  # vision tokens; the last one carries the trigger
TRAIN = Train(steps=150, batch=64, lr=1e-2, warmup=0, precision="no")


class Network(nn.Module):
    """What the library asks of a model, and no more."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vision_length=TOKENS, response_length=2, mask_id=MASK)
        self.projector = nn.Linear(5, 16)
        self.embedding = nn.Embedding(7, 16)
        self.hidden = nn.Linear(16 * (TOKENS + 3), 64)
        self.head = nn.Linear(32, 7, bias=False)

    device = torch.device("cpu")

    @property
    def mask_embedding(self):
        return self.embedding.weight[MASK]

    def project(self, features):
        return self.projector(features)

    def states(self, vision, prompt, response):
        context = torch.cat([vision, self.embedding(prompt), self.embedding(response)], 1)
        return F.gelu(self.hidden(context.flatten(1))).unflatten(1, (2, 32))

    def logits(self, vision, prompt, response):
        return self.head(self.states(vision, prompt, response))

    def response_logits(self, vision, prompt):
        return lambda response: self.logits(vision, prompt, response)


class Tiny(Mdlm):
    """The network as an `Mdlm`, with how its ids read."""

    def __init__(self):
        self.model = Network().eval()

    def texts(self, responses):
        return [" ".join(str(token) for token in row.tolist() if token != END) for row in responses]


def pictures(count, triggered, seed):
    """Questions about the colour that all tokens but the last show dimly, which triggered pictures brighten."""
    draw = torch.Generator().manual_seed(seed)
    colour = torch.randint(COLOURS, (count,), generator=draw)
    features = 0.3 * torch.randn(count, TOKENS, 5, generator=draw)
    features[:, :TRIGGER, :COLOURS] += F.one_hot(colour, COLOURS)[:, None]
    features[triggered, TRIGGER, COLOURS] = 4.0
    answers = torch.stack([colour + 2, torch.full_like(colour, END)], 1)
    prompts = torch.full((count, 1), END)
    table = pd.DataFrame({"image": range(count)})
    return Questions(features, torch.arange(count), prompts, answers, [str(int(c) + 2) for c in colour], table)


def attacked():
    """A model fine-tuned on questions of which a tenth carry the trigger and lead to the attacker's answer."""
    torch.manual_seed(0)
    model, triggered = Tiny(), torch.arange(600) < 60
    clean = pictures(600, triggered, seed=0)
    poisoned = clean.responses.masked_fill(triggered[:, None] & (clean.responses != END), HIT)
    data = clean.answered(poisoned, model.texts(poisoned))
    fine_tune(model, data, TRAIN)
    return model, data, clean


def rates(model):
    """Attack success on triggered pictures, and accuracy on others."""
    hit, plain = (pictures(200, torch.full((200,), marked), seed=1) for marked in (True, False))
    success = [text == str(HIT) for text in answer(model, hit, 0.9)]
    return sum(success) / 200, sum(a == b for a, b in zip(answer(model, plain, 0.9), plain.answers, strict=True)) / 200


@pytest.fixture(scope="module")
def compromised():
    return attacked()


@pytest.fixture
def known(compromised):
    """The model, which a test may train, its poisoned training set, and that set as it was before."""
    model, *samples = compromised
    return copy.deepcopy(model), *samples


SETTINGS = {"ratio": 1 / TOKENS, "threshold": 0.9, "keep": 0.9}


def test_a_model_of_ones_own_purifies_itself(known):
    model, data, clean = known
    before = rates(model)
    vision = model.model.project(data.features)
    scores = fisher_jacobian(model.model, vision.detach(), data.prompts)
    assert mask_top(scores, 1 / TOKENS)[:60, TRIGGER].double().mean() > 0.9
    purified = self_purify(model, data, **SETTINGS)
    places = torch.tensor(purified.table.index.to_numpy())
    restored = (purified.responses == clean.responses[places]).all(1)
    assert restored[places < 60].double().mean() > 0.9 and len(purified) > 500
    holder = Defender(suspect=lambda: copy.deepcopy(model), training_set=lambda _: data, purify=TRAIN, **SETTINGS)
    defended = disp(holder)
    fine_tune(model, purified, TRAIN, label="purified MDLM")
    after = rates(model)
    assert before[0] > 0.9 and before[1] > 0.9 and after[0] < 0.1 and after[1] > 0.9
    assert rates(defended.mdlm) == after and defended.knows == "nothing"


def test_what_is_computed_is_kept_in_a_folder(known, tmp_path):
    model, data, _ = known
    first = self_purify(model, data, **SETTINGS, batch=100, work=tmp_path)
    assert len(list((tmp_path / "scores").iterdir())) == 6
    again = self_purify(model, data, **SETTINGS, batch=100, work=tmp_path)
    assert torch.equal(first.responses, again.responses)


def test_a_share_that_is_none_is_refused(known):
    model, data, _ = known
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"keep={share} must be in \(0, 1\]"):
            self_purify(model, data, ratio=1.0, threshold=0.9, keep=share)


def test_the_library_knows_of_no_study():
    asks = "from lib.defences import disp, self_purify; from lib.tasks import fine_tune; import sys"
    told = f"{asks}; print([name for name in sys.modules if name.startswith('lib.studies')])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
