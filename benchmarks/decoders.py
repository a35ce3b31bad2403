"""LLaDA's and Fast-dLLM's decoding loops from their checkouts, and our model as they call theirs."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.models.blocks import attention
from lib.models.mdlm import MdlmModel

Cache = list[tuple[Tensor, Tensor]]  # keys and values of every block, each [batch, head, position, dim]
FAST = {
    "Fast-dLLM": "generate",
    "Fast-dLLM, prefix cache": "generate_with_prefix_cache",
    "Fast-dLLM, dual cache": "generate_with_dual_cache",
}


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
    """Our model as LLaDA's and Fast-dLLM's are: logits of all that the loop holds, picture and prompt in it.

    With `past_key_values` x is what stands behind these, or with `replace_position` in their midst.
    """

    def __init__(self, model: MdlmModel, vision: Tensor, prompt: Tensor):
        self.model, self.device = model, model.device
        self.before, seen = model.embed_context(vision, prompt)
        self.visible = F.pad(seen, (0, model.config.response_length), value=True)[:, None, None]

    def __call__(
        self,
        x: Tensor,
        attention_mask: None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        replace_position: Tensor | None = None,
    ) -> SimpleNamespace:
        start = past_key_values[0][0].shape[2] if past_key_values else 0
        places = torch.arange(start, start + x.shape[1], device=x.device)
        if replace_position is not None:
            places = replace_position[0].nonzero()[:, 0]
        states, cache = self.embedded(x, places), []
        for k, block in enumerate(self.model.blocks):
            parts = block.qkv(block.before_attention(states)).chunk(3, -1)
            queries, *both = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in parts)
            if past_key_values and replace_position is None:
                both = [torch.cat(pair, 2) for pair in zip(past_key_values[k], both, strict=True)]
            elif past_key_values:
                both = [old.index_copy(2, places, new) for old, new in zip(past_key_values[k], both, strict=True)]
            cache.append(tuple(both))
            mixed = attention(queries, *both, self.visible)
            states = states + block.out(mixed.transpose(1, 2).flatten(2))
            states = states + block.mlp(block.before_mlp(states))
        logits = self.model.head(self.model.norm(states)).float()
        logits[..., self.model.config.mask_id] = -torch.inf  # or it would be emitted
        return SimpleNamespace(logits=logits, past_key_values=cache)

    def embedded(self, x: Tensor, places: Tensor) -> Tensor:
        """States before the first block of tokens at these places."""
        start, length = self.before.shape[1], self.model.config.response_length
        tokens = x.new_full((len(x), start + length), self.model.config.mask_id)
        tokens[:, places] = x
        return torch.cat([self.before, self.model.embed_response(tokens[:, start:])], 1)[:, places]


def loaded(folder: Path | None, option: str = "--llada", file: str = "generate.py") -> ModuleType | None:
    """A peer's decoding loop from its checkout."""
    if folder is None:
        print(f"No {option}: its rows are left out.", flush=True)
        return None
    theirs = ModuleType("model.modeling_llada")
    theirs.LLaDAModelLM = None  # what Fast-dLLM's file imports for its example
    spec = spec_from_file_location(f"{folder.name}_generate".replace("-", "_"), folder / file)
    module = module_from_spec(spec)
    with patch.dict(sys.modules, {"model": ModuleType("model"), "model.modeling_llada": theirs}):
        spec.loader.exec_module(module)
    return module
