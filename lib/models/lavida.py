"""LaViDa (Li et al. 2025, arXiv 2505.16839) with its LLaDA decoder, behind the calls of our own MDLM.

LLaVA's splice as in LLaDA-V, each view's vision tokens pooled two by two. Picture and prompt do not see the response
(prefix attention), so what they give to it is computed once for all steps of decoding. It learns from complementary
masks, and its decoding fills few tokens at first and more later, or the other way round.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from lib.kernels.confidence import confidence
from lib.kernels.loss import weighted_cross_entropy
from lib.models.decoding import Decoded, Selective
from lib.models.llada_v import LladaV, LladaVConfig, LladaVModel, ResponseLogits
from lib.models.mdlm import ABSENT
from lib.runtime.processes import count, share

ATTENTION = ("bidirectional", "prefix")
POOLING = ("bilinear", "average")
PLAIN = {  # what LLaDA's configuration has besides, and what alone is implemented
    "activation_type": "silu",
    "block_type": "llama",
    "block_group_size": 1,
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "weight_tying": False,
}


class LavidaConfig(LladaVConfig):
    """The published `config.json`, in which the decoder's shape has LLaDA's own names, and more as in `LladaVConfig`.

    mm_spatial_pool_mode: "bilinear" (27 × 27 tokens of a view become 14 × 14) or "average" (13 × 13, the last row and
    column left out). attention: "prefix", as it decodes in the authors' evaluation, or "bidirectional".
    """

    title = "LaViDa"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        mm_spatial_pool_mode: str = "bilinear",
        attention: str = "prefix",
        image_aspect_ratio: str = "anyres",
        image_grid_pinpoints: list[list[int]] | str | None = None,
        forbidden: Sequence[int] = (),
        **published,
    ):
        for name, allowed in PLAIN.items():
            if published.get(name) not in (None, allowed):
                value = published[name]
                raise ValueError(f"{name}={value!r} is not implemented for {self.title}: it must be {allowed!r}")
        if mm_spatial_pool_mode not in POOLING:
            raise ValueError(f"mm_spatial_pool_mode={mm_spatial_pool_mode!r} must be one of {', '.join(POOLING)}")
        if attention not in ATTENTION:
            raise ValueError(f"attention={attention!r} must be one of {', '.join(ATTENTION)}")
        self.mm_spatial_pool_mode, self.attention = mm_spatial_pool_mode, attention
        if isinstance(image_grid_pinpoints, str):
            image_grid_pinpoints = [list(canvas) for canvas in ast.literal_eval(image_grid_pinpoints)]
        shape = {ours: published.pop(theirs) for ours, theirs in self.attribute_map.items() if theirs in published}
        super().__init__(
            image_aspect_ratio=image_aspect_ratio,
            image_grid_pinpoints=image_grid_pinpoints
            or [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],  # width × height
            forbidden=forbidden,
            **shape | published,
        )

    @property
    def grid(self) -> int:
        """How many vision tokens a side a view becomes."""
        side = self.vision["image_size"] // self.vision["patch_size"]
        return -(-side // 2) if self.mm_spatial_pool_mode == "bilinear" else side // 2


class LavidaModel(LladaVModel):
    """As `LladaVModel`."""

    config_class = LavidaConfig

    def arranged(
        self, tokens: Float[Tensor, "batch patches dim"], newline: Float[Tensor, " dim"] | None
    ) -> Float[Tensor, "batch vision dim"]:
        """Tokens of all views' patches, pooled view by view, in the order that the decoder gets them."""
        side = self.tower.config.image_size // self.tower.config.patch_size
        maps = tokens.unflatten(1, (-1, side, side)).permute(0, 1, 4, 2, 3).flatten(0, 1)  # [view, dim, row, column]
        if self.config.mm_spatial_pool_mode == "bilinear":
            maps = F.interpolate(maps, (self.config.grid, self.config.grid), mode="bilinear")
        else:
            maps = F.avg_pool2d(maps, 2)
        return super().arranged(maps.flatten(2).mT.unflatten(0, (len(tokens), -1)).flatten(1, 2), newline)

    def states(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        response: Int[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response dim"]:
        """What the head makes logits of, at every response position."""
        if self.config.attention == "bidirectional":
            return super().states(vision, prompt, response)
        x, position_ids, attention_mask = self.joined(vision, prompt, response)
        before, both = x.shape[1] - response.shape[1], x.shape[1]
        visible = attention_mask[:, None, None].expand(-1, 1, both, -1).clone()
        visible[:, :, :before, before:] = False
        states = self.model(inputs_embeds=x, attention_mask=visible, position_ids=position_ids).last_hidden_state
        return states[:, before:]

    def response_logits(
        self, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
    ) -> ResponseLogits:
        """For `lib.models.decoding`: logits of the masked positions only, exact; what can be kept is computed once."""
        kind = ResponseLogits if self.config.attention == "bidirectional" else CachedLogits
        return kind(self, vision, prompt)


class CachedLogits(ResponseLogits):
    """With keys and values of picture and prompt, which do not see the response, computed once."""

    @torch.no_grad()
    def __init__(
        self, model: LavidaModel, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
    ):
        super().__init__(model, vision, prompt)
        blank = prompt.new_full((len(prompt), model.config.response_length), model.config.mask_id)
        x, self.position_ids, self.attention_mask = model.joined(vision, prompt, blank)
        self.before, cache = x.shape[1] - blank.shape[1], DynamicCache()
        model.model(
            inputs_embeds=x[:, : self.before],
            attention_mask=self.attention_mask[:, None, None, : self.before].expand(-1, 1, self.before, -1),
            position_ids=self.position_ids[:, : self.before],
            past_key_values=cache,
        )
        self.layers = [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def states(
        self, tokens: Int[Tensor, "batch response"], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row response dim"]:
        """States of the named rows' responses."""
        cache = DynamicCache()
        for k, (keys, values) in enumerate(self.layers):
            cache.update(keys[rows], values[rows], k)
        return self.model.model(
            inputs_embeds=self.model.model.embed_tokens(tokens[rows]),
            attention_mask=self.attention_mask[rows, None, None].expand(-1, 1, tokens.shape[1], -1),
            position_ids=self.position_ids[rows, self.before :],
            past_key_values=cache,
        ).last_hidden_state


def complementary_masking_loss(
    model: LladaVModel,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    response: Int[Tensor, "batch response"],
    draw: torch.Generator,
) -> Float[Tensor, ""]:
    """LaViDa's SFT: each answer twice, with a mask and with the rest masked, so that every token is learnt once.

    L = 1/L' Σ −log p(token) with L' the response length, t even over (0, 1], one token at least under the first mask.
    As in the authors' code there is no weight 1/t, so it is not a bound on the likelihood. L' counts what fills a
    response up; positions that are `ABSENT` are neither masked nor counted, nor seen by the others.
    """
    batch, length = response.shape
    t = share(1e-3 + (1 - 1e-3) * torch.rand(batch * count(), 1, generator=draw))
    noise = share(torch.rand(batch * count(), length, generator=draw)).to(response.device)
    present = response != ABSENT
    least = noise.masked_fill(~present, torch.inf).amin(1, keepdim=True)
    first = noise <= torch.maximum(t.to(response.device), least)
    masked, twice = torch.cat([first & present, ~first & present]), response.repeat(2, 1)
    noisy = torch.where(masked, model.config.mask_id, twice)
    states = model.states(vision.repeat(2, 1, 1), prompt.repeat(2, 1), noisy)[masked]
    scale = (1 / (batch * present.sum(1, keepdim=True))).repeat(2, 1).expand_as(masked)[masked]
    return weighted_cross_entropy(states, model.head.weight, twice[masked], scale)


def shifted_quotas(positions: int, steps: int, shift: float | int) -> list[int]:
    """How many of `positions` tokens each of `steps` steps fills, by LaViDa's schedule.

    What is still masked at the time 0 ≤ t ≤ 1 before the end is αt / (1 + (α − 1) t) with α = `shift`: above 1 few are
    filled at first and many at last, below 1 many at first; 1 is even. Each step fills one at least. Raises ValueError
    for steps below 1 and shifts of 0 and below.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps={steps!r} must be at least 1 and shift={shift!r} above 0")
    steps = min(steps, positions)
    t = torch.linspace(0, 1, steps + 1)
    left = (shift * t / (1 + (shift - 1) * t) * positions).long()
    quotas = left.diff().clamp(min=1).tolist()
    quotas[-1] += max(0, positions - sum(quotas))  # where float32 falls short of the last one
    over, k = sum(quotas) - positions, 0
    while over > 0:  # taken from steps that fill several, the last ones first, in turn
        if quotas[k % steps] > 1:
            quotas[k % steps] -= 1
            over -= 1
        k += 1
    return quotas[::-1]


@torch.no_grad()
def decode_shifted(
    logits: Selective,
    blank: Int[Tensor, "batch length"],
    *,
    steps: int,
    block_length: int,
    mask_id: int,
    shift: float | int = 1 / 3,
) -> Decoded:
    """As `lib.models.decoding.decode` at temperature 0 on a wholly masked response, but by `shifted_quotas` in a block.

    steps: of all blocks together.
    """
    filled = torch.full_like(blank, mask_id)
    settled = torch.ones(blank.shape, dtype=torch.float64, device=blank.device)
    rows = torch.arange(len(blank), device=blank.device)
    blocks = torch.arange(blank.shape[1], device=blank.device).split(block_length)
    for block in blocks:
        positions = block.expand(len(blank), -1)
        logits.start_block(positions)
        masked = torch.ones_like(positions, dtype=torch.bool)
        for quota in shifted_quotas(len(block), steps // len(blocks), shift):
            token, probability = confidence(logits.logits_at(filled, rows, positions), forbidden=mask_id)
            order = probability.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
            take = torch.zeros_like(masked).scatter(1, order[:, :quota], True)
            filled[:, block] = torch.where(take, token.to(filled.dtype), filled[:, block])
            settled[:, block] = torch.where(take, probability.double(), settled[:, block])
            masked &= ~take
    return Decoded(filled, settled)


class Lavida(LladaV):
    """A model with its tokenizer: texts in, texts out, in the same conversation template as LLaDA-V's."""

    kind, config_kind, model_kind = "LaViDa", LavidaConfig, LavidaModel
    loss = staticmethod(complementary_masking_loss)
    names = {
        r"^model\.transformer\.wte\.": "model.embed_tokens.",
        r"^model\.transformer\.ln_f\.": "model.norm.",
        r"^model\.transformer\.ff_out\.": "lm_head.",
    } | {
        rf"^model\.transformer\.blocks\.(\d+)\.{theirs}\.": rf"model.layers.\1.{ours}."
        for theirs, ours in {
            "q_proj": "self_attn.q_proj",
            "k_proj": "self_attn.k_proj",
            "v_proj": "self_attn.v_proj",
            "attn_out": "self_attn.o_proj",
            "ff_proj": "mlp.gate_proj",
            "up_proj": "mlp.up_proj",
            "ff_out": "mlp.down_proj",
            "attn_norm": "input_layernorm",
            "ff_norm": "post_attention_layernorm",
        }.items()
    }

    def responses(self, answers: list[str]) -> Int[Tensor, "batch response"]:
        """Answer ids, an end of turn, and end-of-text tokens to fill them up; longer answers are refused."""
        config = self.model.config
        ids = super().responses(answers)
        return ids.masked_fill((ids == config.eos_id).cumsum(1) > 1, config.pad_id)
