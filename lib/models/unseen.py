"""A model whose later layers do not see some vision tokens: what pruning them from attention does to its answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lib.models.decoding import LogitsFn, Selective


@dataclass(frozen=True)
class Unseen:
    """Vision tokens that no position attends to in the decoder's layer of that index and in those above."""

    layer: int
    tokens: Bool[Tensor, "sample vision"]

    def __getitem__(self, rows: slice | Tensor) -> Unseen:
        """The same of the chosen samples."""
        return Unseen(self.layer, self.tokens[rows])


def response_logits(
    model: nn.Module,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    unseen: Unseen | None,
) -> LogitsFn | Selective:
    """The model's own `response_logits`, or, where it must not see a vision token, slower ones that do not.

    Raises ValueError for a model of other layers than ours and the published ones', of which no token can be left out.
    """
    if unseen is None or not bool(unseen.tokens.any()):
        return model.response_logits(vision, prompt)
    if not hasattr(model, "decoder_layers"):
        raise ValueError(f"unseen has tokens to leave out: {type(model).__name__} must have `decoder_layers` for that")
    return UnseenLogits(model, vision, prompt, unseen)


class UnseenLogits:
    """A `lib.models.decoding.Selective`: logits of a model's response where `unseen` is left out of attention."""

    def __init__(
        self,
        model: nn.Module,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        unseen: Unseen,
    ):
        self.model, self.vision, self.prompt, self.unseen = model, vision, prompt, unseen

    def start_block(self, block: Int[Tensor, "batch block"]) -> None:
        """Nothing is kept from one step to the next."""

    @torch.no_grad()
    def logits_at(
        self, tokens: Int[Tensor, "batch response"], rows: Int[Tensor, " row"], positions: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        """Logits at `positions` of the named rows."""
        with leaving_out(self.model, self.unseen[rows.to(self.unseen.tokens.device)]):
            logits = self.model.logits(self.vision[rows], self.prompt[rows], tokens[rows])
        logits = logits[torch.arange(len(rows), device=rows.device)[:, None], positions]
        logits[..., getattr(self.model.config, "forbidden", [])] = -torch.inf
        return logits


@contextmanager
def leaving_out(model: nn.Module, unseen: Unseen) -> Iterator[None]:
    """Within, the forward pass of `model` on `unseen`'s samples leaves its tokens out of attention."""

    def narrow(_module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if "attention_mask" in kwargs:  # transformers' layers
            return args, kwargs | {"attention_mask": _narrowed(kwargs["attention_mask"], unseen.tokens, args[0])}
        x, visible = args
        return (x, _narrowed(visible, unseen.tokens, x)), kwargs

    layers = model.decoder_layers[unseen.layer :]
    hooks = [layer.register_forward_pre_hook(narrow, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _narrowed(visible: Tensor | None, tokens: Bool[Tensor, "batch vision"], x: Tensor) -> Tensor:
    """An attention mask, boolean or added to the scores (None: all is seen), without the vision tokens, which stand
    before all else: [batch, 1, 1 or query, position]."""
    hidden = F.pad(tokens.to(x.device), (0, x.shape[1] - tokens.shape[1]))[:, None, None]
    if visible is None:
        visible = x.new_zeros(len(x), 1, 1, x.shape[1])
    return visible & ~hidden if visible.dtype == torch.bool else visible.masked_fill(hidden, -torch.inf)
