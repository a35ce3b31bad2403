"""Other scores of how much a vision token matters, at the first denoising step, to compare with `fisher_jacobian`'s.

`attention_by_layer` and `response_attention` aside, functions `(model, vision [batch, vision, dim], prompt [batch,
prompt]) -> [batch, vision]`, float32 and non-negative. They raise ValueError for wrong shapes, dtypes or NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.models.mdlm import MdlmModel, blocks_of
from lib.saliency.masking import VARIANTS, check_inputs, masked_response


@torch.no_grad()
def attention_received(
    model: MdlmModel, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
) -> Float[Tensor, "batch vision"]:
    """Attention from the masked response positions to each vision token, mean over positions, heads and layers.

    RedVTP's importance (arXiv 2511.12428).
    """
    return attention_by_layer(model, vision, prompt).mean(0)


def late_attention(
    model: MdlmModel, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
) -> Float[Tensor, "batch vision"]:
    """`attention_received`, mean over the later half of the layers alone."""
    layers = attention_by_layer(model, vision, prompt)
    return layers[len(layers) // 2 :].mean(0)


def attention_by_layer(
    model: MdlmModel, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
) -> Float[Tensor, "layer batch vision"]:
    """Attention from the masked response positions to each vision token in every layer, mean over positions and heads.

    Raises ValueError for a model that gives no attention.
    """
    received = response_attention(model, vision, prompt, lambda weight: weight[..., : vision.shape[1]].mean((1, 2)))
    return torch.stack(received)


@torch.no_grad()
def response_attention(
    model: MdlmModel,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    reduce: Callable[[Float[Tensor, "batch head response position"]], Tensor],
) -> list[Tensor]:
    """`reduce` of every layer's attention from the masked response positions to [vision | prompt | response].

    One forward pass, whose blocks' inputs are caught by hooks; the attention of the response positions is then
    computed once more from the blocks' own projections. Raises ValueError for a model that gives no attention.
    """
    check_inputs(vision, prompt)
    response = masked_response(model, vision)
    if hasattr(model, "response_attention"):
        return model.response_attention(vision, prompt, response, reduce)
    reduced = []
    asking = response.shape[1]

    def add(block, given) -> None:
        x, visible = given
        normed = block.before_attention(x)
        keys = block.keys_values(normed)[0]
        width = normed.shape[-1]
        asked = F.linear(normed[:, -asking:], block.qkv.weight[:width], block.qkv.bias[:width])
        queries = asked.unflatten(-1, (block.heads, -1)).transpose(1, 2)
        weight = (queries @ keys.mT).float() / queries.shape[-1] ** 0.5
        reduced.append(reduce(weight.masked_fill(~visible, -torch.inf).softmax(-1)))

    hooks = [block.register_forward_pre_hook(add) for block in blocks_of(model)]
    try:
        model.logits(vision, prompt, response)
    finally:
        for hook in hooks:
            hook.remove()
    return reduced


@torch.no_grad()
def occlusion(
    model, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
) -> Float[Tensor, "batch vision"]:
    """KL(p ‖ p without token i) in nats, summed over response positions: what masking that token alone changes.

    The mask token's embedding takes its place, as in DiSP. One forward pass per token, and one.
    """
    check_inputs(vision, prompt)
    return _divergence(model, vision, prompt, model.mask_embedding.detach().to(vision).expand_as(vision))


def _divergence(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    other: Float[Tensor, "batch vision dim"],
) -> Float[Tensor, "batch vision"]:
    """KL(p ‖ p with `other` in the place of token i), summed over response positions, for every token i."""
    response = masked_response(model, vision)
    log_p = model.logits(vision, prompt, response).double().log_softmax(-1)
    score = torch.zeros(vision.shape[:2], device=vision.device)
    for k, row in enumerate(vision):
        for tokens in torch.arange(len(row), device=row.device).split(VARIANTS):
            changed = row.repeat(len(tokens), 1, 1)
            changed[torch.arange(len(tokens), device=row.device), tokens] = other[k, tokens]
            asked = (words[k].expand(len(tokens), -1) for words in (prompt, response))
            log_q = model.logits(changed, *asked).double().log_softmax(-1)
            divergence = (log_p[k].exp() * (log_p[k] - log_q)).sum((1, 2))
            score[k, tokens] = divergence.clamp(min=0).float()
    return score
