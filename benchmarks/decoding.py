"""How fast are responses decoded, and what share of the tokens is what one by one gives?

    python -m benchmarks.decoding --llada ../LLaDA --fast-dllm ../Fast-dLLM

Peers are the plain way, which computes everything at every step, and where their checkouts are given LLaDA's and
Fast-dLLM's loops, which are given our model. `faces`: descriptions of 32 tokens and more, by the trained model, which
keeps nothing from one step to the next: Fast-dLLM's caches do. That takes one sample at a time. `random` has random
weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.decoders import FAST, Peer, Whole, loaded
from benchmarks.harness import main, pair
from lib.models.decoding import Selective, generate
from lib.models.mdlm import MdlmConfig, MdlmModel, ResponseLogits
from lib.studies.models import base_mdlm
from lib.studies.questions import question_data
from lib.studies.run import run_parameters
from lib.tasks.questions import questions

FACES, ALONE, TOKENS = 16, 4, 32  # descriptions, of these decoded one at a time, the fewest tokens of each
THRESHOLDS = (0.9, 0.95, 0.99)
SIZES = ((64, 16, 16), (8, 64, 32), (1, 256, 32))  # samples, tokens and block length of the random model


class Case(NamedTuple):
    """A model, what it is to respond to, and in blocks of how many tokens."""

    model: MdlmModel
    vision: Tensor  # [sample, vision, dim]
    prompt: Tensor  # [sample, prompt]
    block: int

    def to(self, device: str) -> Case:
        return Case(self.model.to(device), self.vision.to(device), self.prompt.to(device), self.block)

    def part(self, start: int, end: int) -> Case:
        return self._replace(vision=self.vision[start:end], prompt=self.prompt[start:end])

    @property
    def sizes(self) -> dict[str, int]:
        config = self.model.config
        return {"steps": config.response_length, "block_length": self.block, "mask_id": config.mask_id}

    def decode(self, logits_fn: Callable[[Tensor], Tensor] | Selective, threshold: float | None, **others) -> Tensor:
        """A step for every token, or as few as the threshold allows."""
        shape, device = (len(self.prompt), self.model.config.response_length), self.prompt.device
        blank, everywhere = torch.zeros(shape, dtype=torch.long, device=device), torch.ones(shape, device=device).bool()
        return generate(logits_fn, blank, everywhere, threshold=threshold, **self.sizes | others)

    def plain(self, threshold: float | None = None) -> Tensor:
        return self.decode(lambda tokens: self.model.logits(self.vision, self.prompt, tokens), threshold)

    def ours(self, threshold: float | None = None, **others) -> Tensor:
        return self.decode(ResponseLogits(self.model, self.vision, self.prompt), threshold, **others)

    def stopping(self, threshold: float | None = None) -> Tensor:
        """Nothing is decoded behind the end."""
        return self.ours(threshold, end="stop", eos_id=self.model.config.eos_id)

    def alone(self, threshold: float) -> Tensor:
        """One sample after another."""
        return torch.cat([self.part(k, k + 1).ours(threshold) for k in range(len(self.prompt))])

    def llada(self, peer: ModuleType) -> Tensor:
        own = Peer(self.model, self.vision, self.prompt)
        return peer.generate(own, self.prompt[:, :0], gen_length=self.model.config.response_length, **self.sizes)

    def llada_whole(self, peer: ModuleType) -> Tensor:
        """As published: picture and prompt are part of what the loop holds, and get logits too."""
        own, length = Whole(self.model, self.vision, self.prompt), self.model.config.response_length
        return peer.generate(own, self.held, gen_length=length, **self.sizes)[:, -length:]

    def fast(self, way: Callable, threshold: float) -> Tensor:
        """One of Fast-dLLM's loops, one sample after another."""
        length, made = self.model.config.response_length, []
        for k in range(len(self.prompt)):
            one = self.part(k, k + 1)
            own = Whole(self.model, one.vision, one.prompt)
            made.append(way(own, one.held, gen_length=length, threshold=threshold, **self.sizes)[0][:, -length:])
        return torch.cat(made)

    @property
    def held(self) -> Tensor:
        """The prompt behind as many other tokens as there are vision tokens."""
        return F.pad(self.prompt, (self.vision.shape[1], 0), value=self.model.config.pad_id)


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`agreement`: the share of equal tokens; `kept`, `peer_kept`: of each with the plain way, one by one, in float32.

    Tokens/s are of all samples together.
    """
    peer = loaded(chosen.llada)
    fast = loaded(chosen.fast_dllm and chosen.fast_dllm / "llada", "--fast-dllm")
    made = [*faces(described(chosen), peer, fast, chosen)]
    for samples, length, block in SIZES if peer else ():
        case = random(samples, length, block).to(chosen.device)
        name = f"random, {samples} × {length}, blocks of {block}"
        made.append(timed(name, "ours", case.ours, "LLaDA", partial(case.llada, peer), case.plain(), chosen))
    return made


def faces(case: Case, llada: ModuleType | None, fast: ModuleType | None, chosen: argparse.Namespace) -> Iterator[dict]:
    """What is saved with the same tokens, and what fewer steps save."""
    name, kept = "faces", case.plain()
    ways = {f"threshold {t}": partial(case.ours, t) for t in THRESHOLDS}
    ways |= {"threshold 0.95, stop": partial(case.stopping, 0.95), "8 steps": partial(case.ours, steps=8)}
    yield timed(name, "one by one", case.ours, "plain, one by one", case.plain, kept, chosen)
    for own, way in ways.items():
        yield timed(name, own, way, "one by one", case.ours, kept, chosen)
    surer = ways["threshold 0.95"]
    yield timed(name, "threshold 0.95", surer, "plain, threshold 0.95", partial(case.plain, 0.95), kept, chosen)
    for dtype in (torch.float32, torch.bfloat16) if llada else ():
        label = f"{name}, {str(dtype).removeprefix('torch.')}"
        peer, whole = partial(case.llada, llada), partial(case.llada_whole, llada)
        yield timed(label, "one by one", case.ours, "LLaDA", peer, kept, chosen, dtype)
        yield timed(label, "threshold 0.95", surer, "LLaDA", peer, kept, chosen, dtype)
        yield timed(label, "threshold 0.95", surer, "LLaDA, whole sequence", whole, kept, chosen, dtype)
    alone = case.part(0, ALONE)
    for other, function in FAST.items() if fast else ():
        peer, way = partial(alone.fast, getattr(fast, function), 0.95), partial(alone.alone, 0.95)
        yield timed(f"{name}, one at a time", "threshold 0.95", way, f"{other}, 0.95", peer, kept[:ALONE], chosen)


def timed(
    case: str,
    name: str,
    ours: Callable[[], Tensor],
    other: str,
    peer: Callable[[], Tensor],
    kept: Tensor,
    chosen: argparse.Namespace,
    dtype: torch.dtype = torch.float32,
) -> dict:
    with torch.autocast(chosen.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        made = {}
        ways = [lambda who=who, way=way: made.update({who: way()}) for who, way in (("ours", ours), ("peer", peer))]
        row = pair(case, *ways, chosen, (name, other))
    row["agreement"] = same(made["ours"], made["peer"])
    row |= {"kept": same(made["ours"], kept), "peer_kept": same(made["peer"], kept)}
    return row | {f"{who}_tokens_s": tokens.numel() / row[f"{who}_ms"] * 1e3 for who, tokens in made.items()}


def same(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


@torch.no_grad()
def described(chosen: argparse.Namespace) -> Case:
    """The model of faces, and the first test faces whose description has `TOKENS` and more."""
    run = run_parameters("decoding", "laptop", 0, chosen.device)
    mdlm, asked = base_mdlm(run.profile, run.device), question_data(run, "test")
    table = asked.table[asked.table["kind"] == "description"]
    long = [len(ids) >= TOKENS for ids in mdlm.tokenizer(table["answer"].tolist(), add_special_tokens=False).input_ids]
    data = questions(mdlm, asked, table[long].iloc[:FACES].reset_index(drop=True))
    vision = mdlm.model.project(data.features[data.picture].to(run.device))
    return Case(mdlm.model, vision, data.prompts, mdlm.model.config.response_length).to(chosen.device)


@torch.no_grad()
def random(samples: int, length: int, block: int) -> Case:
    """Two layers, with weights so large that the tokens matter to one another."""
    torch.manual_seed(0)
    model = MdlmModel(MdlmConfig(vocab_size=512, width=64, layers=2, prompt_length=48, response_length=length)).eval()
    for weight in [model.head.weight, *(p for p in model.blocks.parameters() if p.ndim == 2)]:
        torch.nn.init.normal_(weight, std=0.2)
    vision, prompt = torch.randn(samples, model.config.vision_length, 64), torch.randint(4, 512, (samples, 48))
    return Case(model, vision, prompt, block)


main(__name__, rows, __file__)
