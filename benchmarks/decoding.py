"""How fast are responses decoded, and what share of the tokens is the peer's?

Peers are the plain way, which computes everything at every step, and where their checkouts are given LLaDA's loop and
Fast-dLLM's three; these are given our model's logits. `vqa` answers 64 questions of easy-VQA, 20 tokens each, by the
models trained with either attention. `random` has random weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import main, pair
from lib.answering import draw_rows, questions
from lib.caching import ResponseLogits, through
from lib.config import BUILD, CHECKPOINTS
from lib.data import load_easyvqa
from lib.decoding import Selective, generate
from lib.models.mdlm import Mdlm, MdlmConfig, MdlmModel
from lib.store import Store

SIZES = ((64, 16, 16), (8, 64, 32), (1, 256, 32))  # samples, tokens and block length of the random model
FILES = {"llada": "generate.py", "fast_dllm": "llada/generate.py"}
FOLDERS = {"bidirectional": "mdlm-vqa", "prefix": "mdlm-vqa-prefix"}  # of the trained models
FAST_DLLM = {"": None, "_with_prefix_cache": "prefix", "_with_dual_cache": "dual"}  # their `generate…`, our cache


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

    def ours(self, threshold: float | None = None, cache: str | None = None) -> Tensor:
        return self.decode(ResponseLogits(self.model, self.vision, self.prompt, cache), threshold)

    def llada(self, peer: ModuleType) -> Tensor:
        own = Peer(self.model, self.vision, self.prompt)
        return peer.generate(own, self.prompt[:, :0], gen_length=self.model.config.response_length, **self.sizes)

    def llada_whole(self, peer: ModuleType) -> Tensor:
        """As published: picture and prompt are part of what the loop holds, and get logits too."""
        own, length = Whole(self.model, self.vision, self.prompt), self.model.config.response_length
        before = F.pad(self.prompt, (self.vision.shape[1], 0), value=self.model.config.pad_id)
        return peer.generate(own, before, gen_length=length, **self.sizes)[:, -length:]

    def fast_dllm(self, peer: ModuleType, kind: str) -> Tensor:
        """Sample by sample: it takes no more at once."""
        way, length = getattr(peer, f"generate{kind}"), self.model.config.response_length
        given = zip(self.vision.split(1), self.prompt.split(1), strict=True)
        done = [way(Peer(self.model, v, p), p[:, :0], gen_length=length, **self.sizes)[0] for v, p in given]
        return torch.cat(done)


class Peer:
    """Our model as the peers' loops call theirs: x is the response, or the part of it that is to be computed."""

    def __init__(self, model: MdlmModel, vision: Tensor, prompt: Tensor):
        self.model, self.device = model, model.device
        self.vision, self.prompt, self.start = vision, prompt, vision.shape[1] + prompt.shape[1]

    def __call__(
        self,
        x: Tensor,
        attention_mask: None = None,
        past_key_values: list[tuple[Tensor, Tensor]] | None = None,
        use_cache: bool = False,
        replace_position: Tensor | None = None,
    ) -> SimpleNamespace:
        past = None
        if not use_cache:
            logits = self.model.logits(self.vision, self.prompt, x)
        elif past_key_values is None:
            before, seen = self.model._before(self.vision, self.prompt)
            self.visible = F.pad(seen, (0, x.shape[1]), value=True)[:, None, None]
            self.held = [None] * len(self.model.blocks)
            logits = self.computed(torch.cat([before, self.model._response(x)], 1), 0)[:, self.start :]
            past = [tuple(part[:, :, self.start :] for part in layer) for layer in self.held]
        else:
            given = past_key_values[0][0].shape[2]
            first = given if replace_position is None else int(replace_position[0].int().argmax())
            places = self.model.position[-self.model.config.response_length :][first : first + x.shape[1]]
            logits = self.computed(self.model.embedding(x) + places, self.start + first)
        logits[..., self.model.config.mask_id] = -torch.inf  # or they would emit it
        return SimpleNamespace(logits=logits, past_key_values=past)

    def computed(self, x: Tensor, first: int) -> Tensor:
        """Keys and values are held here, picture's and prompt's too; what the loop holds is a view of them."""
        for k, block in enumerate(self.model.blocks):
            x, self.held[k] = through(block, x, self.held[k], first, self.visible)
        return self.model.head(self.model.norm(x)).float()


class Whole:
    """Our model as LLaDA's is: logits of the whole sequence, which the loop hands back at every step."""

    def __init__(self, model: MdlmModel, vision: Tensor, prompt: Tensor):
        self.model, self.device = model, model.device
        self.before, seen = model._before(vision, prompt)
        start, length = seen.shape[1], seen.shape[1] + model.config.response_length
        self.visible = F.pad(seen, (0, length - start), value=True)[:, None, None].repeat(1, 1, length, 1)
        if model.config.attention == "prefix":
            self.visible[:, :, :start, start:] = False

    def __call__(self, x: Tensor, attention_mask: None = None) -> SimpleNamespace:
        states = torch.cat([self.before, self.model._response(x[:, self.before.shape[1] :])], 1)
        for block in self.model.blocks:
            states = block(states, self.visible)
        logits = self.model.head(self.model.norm(states)).float()
        logits[..., self.model.config.mask_id] = -torch.inf  # or it would be emitted
        return SimpleNamespace(logits=logits)


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`agreement`: the share of equal tokens. Tokens/s are of all samples together."""
    peers = {name: loaded(name, getattr(chosen, name)) for name in FILES}
    made = []
    for name, case in trained(chosen).items():
        made += vqa(name, case, peers["llada"], chosen)
    for samples, length, block in SIZES:
        case = random(samples, length, block).to(chosen.device)
        made += compared(f"random, {samples} × {length}, blocks of {block}", case, peers, chosen)
    return made


def vqa(name: str, case: Case, llada: ModuleType | None, chosen: argparse.Namespace) -> Iterator[dict]:
    """What is saved with the same tokens, and what fewer steps save with others."""
    sure, surer = partial(case.ours, 0.9), partial(case.ours, 0.95)
    if case.model.config.attention == "prefix":
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


def compared(name: str, case: Case, peers: dict[str, ModuleType | None], chosen: argparse.Namespace) -> Iterator[dict]:
    """Each cache beside none, and each beside the peer that does the same."""
    for cache in ("prefix", "dual"):
        yield timed(name, f"{cache} cache", partial(case.ours, cache=cache), "no cache", case.ours, chosen)
    if peers["llada"]:
        yield timed(name, "no cache", case.ours, "LLaDA", partial(case.llada, peers["llada"]), chosen)
    for kind, cache in FAST_DLLM.items() if peers["fast_dllm"] else ():
        peer = partial(case.fast_dllm, peers["fast_dllm"], kind)
        what = f"{cache or 'no'} cache"
        yield timed(name, what, partial(case.ours, cache=cache), f"Fast-dLLM, {what}", peer, chosen)


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
def trained(chosen: argparse.Namespace) -> dict[str, Case]:
    """Each attention that was trained (`python -m lib.base vqa --attention …`), on 64 questions of the test split."""
    there = {name: CHECKPOINTS / folder for name, folder in FOLDERS.items() if (CHECKPOINTS / folder).is_dir()}
    models = {f"vqa, {name}": Mdlm.load(str(folder)) for name, folder in there.items()}
    data = load_easyvqa(Store(BUILD / "store"), "test")
    cases = {}
    for name, mdlm in models.items():
        asked = questions(mdlm, data, draw_rows(data.table, 64, 0, "benchmark"))
        vision = mdlm.model.project(asked.features[asked.picture])
        cases[name] = Case(mdlm.model, vision, asked.prompts, mdlm.model.config.response_length).to(chosen.device)
    return cases


def random(samples: int, length: int, block: int) -> Case:
    """Two layers, with weights so large that the tokens matter to one another."""
    torch.manual_seed(0)
    model = MdlmModel(MdlmConfig(vocab_size=512, width=64, layers=2, prompt_length=48, response_length=length)).eval()
    for weight in [model.head.weight, *(p for p in model.blocks.parameters() if p.ndim == 2)]:
        torch.nn.init.normal_(weight, std=0.2)
    vision, prompt = torch.randn(samples, model.config.vision_length, 64), torch.randint(4, 512, (samples, 48))
    return Case(model, vision, prompt, block)


def loaded(name: str, folder: Path | None) -> ModuleType | None:
    """A peer's `generate.py` from its checkout; without the model that Fast-dLLM's imports beside it."""
    if folder is None:
        print(f"No --{name.replace('_', '-')}: its rows are left out.", flush=True)
        return None
    spec = spec_from_file_location(f"{name}_generate", folder / FILES[name])
    module, model = module_from_spec(spec), ModuleType("model.modeling_llada")
    model.LLaDAModelLM = None
    with patch.dict(sys.modules, {"model": ModuleType("model"), "model.modeling_llada": model}):
        spec.loader.exec_module(module)
    return module


main(__name__, rows, __file__)
