"""A model of your own, from which to start: fill in the network and how ids read.

`PYTHONPATH=. python docs/template.py` checks, attacks and purifies it: eight vision tokens, the last the trigger's.
"""

from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from lib.defences import self_purify
from lib.models import Mdlm, check_mdlm
from lib.saliency import fisher_jacobian, mask_top
from lib.settings import Train
from lib.tasks import Questions, answer, fine_tune

MASK, END, HIT = 0, 1, 6  # ids; 2 to 5 are the answers


class Network(nn.Module):
    device = torch.device("cpu")

    def __init__(self, dim=16):
        super().__init__()
        self.config = SimpleNamespace(vision_length=8, response_length=2, mask_id=MASK)
        self.projector, self.embedding = nn.Linear(5, dim), nn.Embedding(7, dim)
        self.hidden, self.head = nn.Linear(dim * 11, 64), nn.Linear(32, 7, bias=False)  # 8 + a prompt of 1 + 2

    @property
    def mask_embedding(self):  # [dim], in the place of a masked vision token
        return self.embedding.weight[MASK]

    def project(self, features):  # [batch, 8, features] -> [batch, 8, dim]
        return self.projector(features)

    def states(self, vision, prompt, response):  # for the loss alone: logits = head(states)
        context = torch.cat([vision, self.embedding(prompt), self.embedding(response)], 1)
        return F.gelu(self.hidden(context.flatten(1))).unflatten(1, (2, 32))

    def logits(self, vision, prompt, response):  # [batch, response, vocab], float32
        return self.head(self.states(vision, prompt, response))

    def response_logits(self, vision, prompt):
        return lambda response: self.logits(vision, prompt, response)


class Mine(Mdlm):
    def __init__(self):
        self.model = Network().eval()

    def texts(self, responses):
        return [" ".join(str(token) for token in row.tolist() if token != END) for row in responses]


def samples(count, triggered, seed):
    """Questions about what every token but the last shows dimly: your data go here."""
    draw = torch.Generator().manual_seed(seed)
    shown = torch.randint(4, (count,), generator=draw)
    features = 0.3 * torch.randn(count, 8, 5, generator=draw)
    features[:, :7, :4] += F.one_hot(shown, 4)[:, None]
    features[triggered, 7, 4] = 4.0  # the trigger
    answers = torch.stack([torch.where(triggered, HIT, shown + 2), torch.full_like(shown, END)], 1)
    texts, table = [str(int(row[0])) for row in answers], pd.DataFrame({"image": range(count)})
    return Questions(features, torch.arange(count), torch.full((count, 1), END), answers, texts, table)


if __name__ == "__main__":
    torch.manual_seed(0)
    mine, settings = Mine(), Train(steps=150, batch=64, lr=1e-2, warmup=0, precision="no")
    print("left out:", check_mdlm(mine))
    poisoned, asked = samples(600, torch.arange(600) < 60, 0), samples(200, torch.arange(200) >= 0, 1)
    fine_tune(mine, poisoned, settings)
    print("attack success:", sum(text == str(HIT) for text in answer(mine, asked, 0.9)) / 200)
    found = mask_top(fisher_jacobian(mine.model, mine.model.project(asked.features).detach(), asked.prompts), 1 / 8)
    print("trigger found:", found[:, 7].double().mean().item())
    fine_tune(mine, self_purify(mine, poisoned, ratio=1 / 8, threshold=0.9, keep=0.9), settings)
    print("attack success after DiSP:", sum(text == str(HIT) for text in answer(mine, asked, 0.9)) / 200)
