"""What the model is made of: attention, the Transformer block, the levels' norm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention, each [batch, head, position, dim]; `visible` is boolean, as broadcast over the scores.

    On a CPU the backward pass of torch's fused attention takes longer than plain matrix products
    (benchmarks/training.py): these where gradients may be asked for.
    """
    if queries.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return scores.masked_fill(~visible, -torch.inf).softmax(-1).to(values.dtype) @ values


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, visible: Tensor, last: int = 0) -> Tensor:
        """New states of the `last` positions of `x` (0: all), which see `x` where `visible`."""
        normed, x = self.before_attention(x), x[:, -last:]
        keys, values = self.keys_values(normed)
        width = x.shape[-1]
        weight, bias = self.qkv.weight[:width], self.qkv.bias[:width]  # the queries': (width, width), (width)
        queries = self._heads(F.linear(normed[:, -last:], weight, bias))  # (batch, head, last, dim)
        mixed = attention(queries, keys, values, visible)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))  # (batch, last, width)
        return x + self.mlp(self.before_mlp(x))

    def states_at(self, x: Tensor, visible: Tensor, places: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """As `forward`, for decoding: new states at `places` (row, position; None: all), projections in one product."""
        queries, keys, values = self.qkv(self.before_attention(x)).chunk(3, -1)
        if places is not None:
            queries, x = queries[places], x[places]
        mixed = attention(*map(self._heads, (queries, keys, values)), visible)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """What positions give to others, from states after `before_attention`: each [batch, head, position, dim]."""
        width = normed.shape[-1]
        both = F.linear(normed, self.qkv.weight[width:], self.qkv.bias[width:])  # (batch, position, 2 · width)
        return tuple(self._heads(part) for part in both.chunk(2, -1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LevelNorm(nn.Module):
    """LayerNorm without parameters of each of the tower's levels that lie side by side."""

    def __init__(self, levels: int):
        super().__init__()
        self.levels = levels

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        parts = x.unflatten(-1, (self.levels, -1))
        return F.layer_norm(parts, parts.shape[-1:]).flatten(-2)
