"""Logits of an MDLM's response for `decode`, with less computed at a step than `MdlmModel.logits` computes.

Always left out, which changes nothing: rows that are full, and behind the last attention the positions already filled.
With `prefix` attention picture and prompt are computed once for all steps, which changes nothing either. `CACHES` go
further and are approximate: Fast-dLLM's (arXiv 2505.22618), which let keys and values go stale while a block is filled.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.models.mdlm import Block, KeysValues, MdlmModel, attention

CACHES = ("prefix", "dual")


class ResponseLogits:
    """A `lib.decoding.Selective`: logits of a model's response to pictures and prompts.

    cache   None: as `model.logits` gives them. Otherwise the first step of a block is, and those after it compute only
            the block and what follows it ("prefix") or the block alone ("dual"): all else keeps the keys and values it
            had at the first step. The block reaches from its earliest to its latest position in any row.

    Positions are those of the response. Raises ValueError for a `cache` that is none of `CACHES`.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: MdlmModel,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        cache: str | None = None,
    ):
        if cache is not None and cache not in CACHES:
            raise ValueError(f"cache={cache!r} must be None or one of {', '.join(CACHES)}")
        self.model, self.cache = model, cache
        self.start = vision.shape[1] + prompt.shape[1]
        self.before = self.known = None
        if model.config.attention == "prefix":
            known, seen = model.prefix(vision, prompt)
            room = (0, 0, 0, model.config.response_length)
            self.known = [tuple(F.pad(part, room) for part in layer) for layer in known]
        else:
            self.before, seen = model._before(vision, prompt)
        self.seen = F.pad(seen, (0, model.config.response_length), value=True)[:, None, None]

    def start_block(self, block: Int[Tensor, "batch block"]) -> None:
        """From now on `block` is filled: all rows take part again, and the next step computes everything."""
        self.rows, self.visible = torch.arange(len(block), device=block.device), self.seen
        self.layers = self.known or [None] * len(self.model.blocks)
        self.span = int(block.min()), int(block.max()) + 1
        self.anew = True

    @torch.no_grad()
    def logits_at(
        self, tokens: Int[Tensor, "batch response"], rows: Int[Tensor, " row"], positions: Int[Tensor, "row asked"]
    ) -> Float[Tensor, "row asked vocab"]:
        """Logits at `positions` of the named rows, which are among those of the call before."""
        self._drop(rows)
        length = tokens.shape[1]
        first, end = (0, length) if self.anew else self.span
        if self.cache == "prefix":
            end = length
        places = self.model.position[-self.model.config.response_length :]
        x = self.model.embedding(tokens[rows, first:end]) + places[first:end]
        first += self.start
        if self.anew and self.before is not None:
            x, first = torch.cat([self.before[rows], x], 1), 0
            self.layers = [None] * len(self.model.blocks)
        visible = self.visible[..., : self.start + length]
        asked = torch.arange(len(rows), device=rows.device)[:, None], positions + self.start - first
        for k, block in enumerate(self.model.blocks):
            last = k == len(self.model.blocks) - 1
            x, fresh = through(block, x, self.layers[k], first, visible, asked if last else None)
            if self.cache is not None:
                self.layers[k] = fresh
        self.anew = self.cache is None
        return self.model.head(self.model.norm(x)).float()

    def _drop(self, rows: Tensor) -> None:
        if len(rows) < len(self.rows):
            kept = torch.searchsorted(self.rows, rows)
            self.rows, self.visible = rows, self.visible[kept]
            self.layers = [layer and tuple(part[kept] for part in layer) for layer in self.layers]


def through(
    block: Block,
    x: Float[Tensor, "row position dim"],
    held: KeysValues | None,
    first: int,
    visible: Bool[Tensor, "row 1 #query key"],
    asked: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, KeysValues]:
    """As `Block.forward`, with the keys and values of `x` at hand: written into `held` from position `first` on.

    Returns the states of `x` where `asked` (an index, row and position; None: of all), and the keys and values seen.
    """
    queries, keys, values = block.qkv(block.before_attention(x)).chunk(3, -1)
    if asked is not None:
        queries, x = queries[asked], x[asked]
    queries, keys, values = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in (queries, keys, values))
    if held is not None:
        for whole, part in zip(held, (keys, values), strict=True):
            whole[:, :, first : first + part.shape[2]] = part
        keys, values = (whole[:, :, : visible.shape[-1]] for whole in held)
    mixed = attention(queries, keys, values, visible)
    x = x + block.out(mixed.transpose(1, 2).flatten(2))
    return x + block.mlp(block.before_mlp(x)), (keys, values)
