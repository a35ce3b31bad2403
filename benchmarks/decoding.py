"""How fast are responses decoded, and what share of the tokens is the peer's?

Peers are the plain way, which computes everything at every step, and where its checkout is given LLaDA's loop, which is
given our model's logits. `vqa` answers 64 questions of easy-VQA, 20 tokens each, by the trained model. `random` has
random weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import main, pair
from lib.models.decoding import Selective, generate
from lib.models.mdlm import Mdlm, MdlmConfig, MdlmModel, ResponseLogits
from lib.runtime.store import Store
from lib.settings.paths import BUILD, CHECKPOINTS
from lib.studies.data import stored_easyvqa
from lib.tasks.questions import draw_rows, questions

SIZES = ((64, 16, 16), (8, 64, 32), (1, 256, 32))  # samples, tokens and block length of the random model


class Case(NamedTuple):
    """A model, what it is to respond to, and in blocks of how many tokens."""

    model: MdlmModel
    vision: Tensor  # [sample, vision, dim]
    prompt: Tensor  # [sample, prompt]
    block: int

    def to(self, device: str) -> Case:
        return Case(self.model.to(device), self.vision.to(device), self.prompt.to(device), self.block)

    @property
    def sizes(self) -> dict[str, int]:
        config = self.model.config
        return {"steps": config.response_length, "block_length": self.block, "mask_id": config.mask_id}

    def decode(self, logits_fn: Callable[[Tensor], Tensor] | Selective, threshold: float | None) -> Tensor:
        """A step for every token, or as few as the threshold allows."""
        shape, device = (len(self.prompt), self.model.config.response_length), self.prompt.device
        blank, everywhere = torch.zeros(shape, dtype=torch.long, device=device), torch.ones(shape, device=device).bool()
        return generate(logits_fn, blank, everywhere, threshold=threshold, **self.sizes)

    def plain(self, threshold: float | None = None) -> Tensor:
        return self.decode(lambda tokens: self.model.logits(self.vision, self.prompt, tokens), threshold)

    def ours(self, threshold: float | None = None) -> Tensor:
        return self.decode(ResponseLogits(self.model, self.vision, self.prompt), threshold)

    def llada(self, peer: ModuleType) -> Tensor:
        own = Peer(self.model, self.vision, self.prompt)
        return peer.generate(own, self.prompt[:, :0], gen_length=self.model.config.response_length, **self.sizes)

    def llada_whole(self, peer: ModuleType) -> Tensor:
        """As published: picture and prompt are part of what the loop holds, and get logits too."""
        own, length = Whole(self.model, self.vision, self.prompt), self.model.config.response_length
        before = F.pad(self.prompt, (self.vision.shape[1], 0), value=self.model.config.pad_id)
        return peer.generate(own, before, gen_length=length, **self.sizes)[:, -length:]


class Peer:
    """Our model as the peer's loop calls its own: x is the response."""

    def __init__(self, model: MdlmModel, vision: Tensor, prompt: Tensor):
        self.model, self.device = model, model.device
        self.vision, self.prompt = vision, prompt

    def __call__(self, x: Tensor, attention_mask: None = None) -> SimpleNamespace:
        logits = self.model.logits(self.vision, self.prompt, x)
        logits[..., self.model.config.mask_id] = -torch.inf  # or they would emit it
        return SimpleNamespace(logits=logits)


class Whole:
    """Our model as LLaDA's is: logits of the whole sequence, which the loop hands back at every step."""

    def __init__(self, model: MdlmModel, vision: Tensor, prompt: Tensor):
        self.model, self.device = model, model.device
        self.before, seen = model.embed_context(vision, prompt)
        self.visible = F.pad(seen, (0, model.config.response_length), value=True)[:, None, None]

    def __call__(self, x: Tensor, attention_mask: None = None) -> SimpleNamespace:
        states = torch.cat([self.before, self.model.embed_response(x[:, self.before.shape[1] :])], 1)
        for block in self.model.blocks:
            states = block(states, self.visible)
        logits = self.model.head(self.model.norm(states)).float()
        logits[..., self.model.config.mask_id] = -torch.inf  # or it would be emitted
        return SimpleNamespace(logits=logits)


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`agreement`: the share of equal tokens. Tokens/s are of all samples together."""
    peer = loaded(chosen.llada)
    made = [*vqa(trained(chosen), peer, chosen)]
    for samples, length, block in SIZES if peer else ():
        case = random(samples, length, block).to(chosen.device)
        name = f"random, {samples} × {length}, blocks of {block}"
        made.append(timed(name, "ours", case.ours, "LLaDA", partial(case.llada, peer), chosen))
    return made


def vqa(case: Case, llada: ModuleType | None, chosen: argparse.Namespace) -> Iterator[dict]:
    """What is saved with the same tokens, and what fewer steps save with others."""
    name, sure, surer = "vqa", partial(case.ours, 0.9), partial(case.ours, 0.95)
    yield timed(name, "one by one", case.ours, "plain, one by one", case.plain, chosen)
    yield timed(name, "threshold 0.9", sure, "one by one", case.ours, chosen)
    yield timed(name, "threshold 0.95", surer, "one by one", case.ours, chosen)
    yield timed(name, "threshold 0.95", surer, "plain, threshold 0.95", partial(case.plain, 0.95), chosen)
    if llada:
        peer = partial(case.llada, llada)
        for dtype in (torch.float32, torch.bfloat16):
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            yield timed(label, "one by one", case.ours, "LLaDA", peer, chosen, dtype)
            yield timed(label, "threshold 0.95", surer, "LLaDA", peer, chosen, dtype)
            whole = partial(case.llada_whole, llada)
            yield timed(label, "one by one", case.ours, "LLaDA, whole sequence", whole, chosen, dtype)


def timed(
    case: str,
    name: str,
    ours: Callable[[], Tensor],
    other: str,
    peer: Callable[[], Tensor],
    chosen: argparse.Namespace,
    dtype: torch.dtype = torch.float32,
) -> dict:
    with torch.autocast(chosen.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        made = {}
        ways = [lambda who=who, way=way: made.update({who: way()}) for who, way in (("ours", ours), ("peer", peer))]
        row = pair(case, *ways, chosen, (name, other))
    row["agreement"] = float((made["ours"] == made["peer"]).double().mean())
    return row | {f"{who}_tokens_s": tokens.numel() / row[f"{who}_ms"] * 1e3 for who, tokens in made.items()}


@torch.no_grad()
def trained(chosen: argparse.Namespace) -> Case:
    """The model of easy-VQA on 64 questions for testing."""
    mdlm, data = Mdlm.load(str(CHECKPOINTS / "mdlm-vqa")), stored_easyvqa(Store(BUILD / "store"), "test")
    asked = questions(mdlm, data, draw_rows(data.table, 64, 0, "benchmark"))
    vision = mdlm.model.project(asked.features[asked.picture])
    return Case(mdlm.model, vision, asked.prompts, mdlm.model.config.response_length).to(chosen.device)


def random(samples: int, length: int, block: int) -> Case:
    """Two layers, with weights so large that the tokens matter to one another."""
    torch.manual_seed(0)
    model = MdlmModel(MdlmConfig(vocab_size=512, width=64, layers=2, prompt_length=48, response_length=length)).eval()
    for weight in [model.head.weight, *(p for p in model.blocks.parameters() if p.ndim == 2)]:
        torch.nn.init.normal_(weight, std=0.2)
    vision, prompt = torch.randn(samples, model.config.vision_length, 64), torch.randint(4, 512, (samples, 48))
    return Case(model, vision, prompt, block)


def loaded(folder: Path | None) -> ModuleType | None:
    """LLaDA's `generate.py` from its checkout."""
    if folder is None:
        print("No --llada: its rows are left out.", flush=True)
        return None
    spec = spec_from_file_location("llada_generate", folder / "generate.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


main(__name__, rows, __file__)
