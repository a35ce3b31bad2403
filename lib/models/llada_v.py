"""LLaDA-V (You et al. 2025, arXiv 2505.16933) behind the calls of our own MDLM, in the layout of `GSAI-ML/LLaDA-V`.

SigLIP2 tower without its last layer, two-layer GELU projector, LLaDA. Modules bear the names of the published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llama.modeling_llama import repeat_kv, rotate_half

from lib.models.anyres import ASPECTS, MERGES, Layout, in_rows, layout, views
from lib.models.llada import IMAGE, LladaDecoder, splice
from lib.models.mdlm import ABSENT, MdlmModel
from lib.models.published import Published

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
SIGLIP2_SO400M = {  # google/siglip2-so400m-patch14-384, whose last layer of 27 LLaVA leaves out
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


class LladaVConfig(PreTrainedConfig):
    """The published `config.json`, and what its code holds fixed or leaves to the caller.

    vision: a `SiglipVisionConfig` as a dictionary, its layers those that are stored. picture: height and width of the
    pictures it is to be given. prompt_length: the most tokens of a question, the conversation's template apart.
    response_length: as many tokens as an answer has that is decoded. answer_length: as many as one that is learnt has,
    filled up with `eos_id`; None: `response_length`. forbidden: ids that the authors' decoding
    never emits. Raises ValueError for what is not implemented here.
    """

    model_type = "llava_llada"
    title = "LLaDA-V"

    def __init__(
        self,
        vision: dict | None = None,
        vocab_size: int = 126464,
        hidden_size: int = 4096,
        intermediate_size: int = 12288,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 16384,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 500000.0,
        rope_scaling: dict | None = None,
        attention_bias: bool = False,
        tie_word_embeddings: bool = False,
        mm_projector_type: str = "mlp2x_gelu",
        mm_resampler_type: str | None = None,
        mm_patch_merge_type: str = "spatial_unpad",
        mm_use_im_start_end: bool = False,
        image_aspect_ratio: str | None = "anyres_max_4",
        image_grid_pinpoints: list[list[int]] | None = None,
        picture: Sequence[int] | None = None,
        prompt_length: int = 128,
        response_length: int = 128,
        answer_length: int | None = None,
        mask_id: int = 126336,
        eos_id: int = 126348,
        pad_id: int = 126081,
        forbidden: Sequence[int] = (126081, 126080, 126346, 126347),
        **kwargs,
    ):
        only = {
            "mm_projector_type": (mm_projector_type, "mlp2x_gelu"),
            "mm_resampler_type": (mm_resampler_type, None),
            "mm_use_im_start_end": (mm_use_im_start_end, False),
            "rope_scaling": (rope_scaling, None),
            "tie_word_embeddings": (tie_word_embeddings, False),
        }
        for name, (value, allowed) in only.items():
            if value != allowed:
                raise ValueError(f"{name}={value!r} is not implemented for {self.title}: it must be {allowed!r}")
        if mm_patch_merge_type not in MERGES:
            raise ValueError(f"mm_patch_merge_type={mm_patch_merge_type!r} must be one of {', '.join(MERGES)}")
        aspect = image_aspect_ratio or "square"
        if aspect not in ("square", "pad", "anyres") and not aspect.removeprefix("anyres_max_").isdigit():
            raise ValueError(f"image_aspect_ratio={aspect!r} must be one of {ASPECTS}")
        self.vision = SIGLIP2_SO400M if vision is None else vision
        side = self.vision["image_size"]
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.hidden_act, self.attention_bias = hidden_act, attention_bias
        self.max_position_embeddings, self.initializer_range = max_position_embeddings, initializer_range
        self.rms_norm_eps, self.rope_theta = rms_norm_eps, rope_theta
        self.mm_projector_type, self.mm_patch_merge_type = mm_projector_type, mm_patch_merge_type
        self.image_aspect_ratio = aspect
        self.image_grid_pinpoints = image_grid_pinpoints or [
            [side * across, side * down] for across in range(1, 7) for down in range(1, 7)
        ]
        self.picture = list(picture or (side, side))
        self.prompt_length, self.response_length = prompt_length, response_length
        self.answer_length = answer_length
        self.mask_id, self.eos_id, self.pad_id, self.forbidden = mask_id, eos_id, pad_id, list(forbidden)
        super().__init__(**kwargs)

    def decoder(self) -> LlamaConfig:
        """The decoder's shape."""
        shared = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "hidden_act max_position_embeddings initializer_range rms_norm_eps attention_bias"
        )
        rotary = {"rope_type": "default", "rope_theta": self.rope_theta}
        return LlamaConfig(rope_parameters=rotary, use_cache=False, **{k: getattr(self, k) for k in shared.split()})

    def layout(self, height: int, width: int) -> Layout:
        """How pictures of that size become vision tokens."""
        side, merge = self.vision["image_size"], self.mm_patch_merge_type
        return layout((height, width), side, self.grid, self.image_aspect_ratio, merge, self.image_grid_pinpoints)

    @property
    def grid(self) -> int:
        """How many vision tokens a side a view becomes."""
        return self.vision["image_size"] // self.vision["patch_size"]

    @property
    def vision_features(self) -> int:
        """How many numbers the tower gives of each patch."""
        return self.vision["hidden_size"]

    @property
    def vision_length(self) -> int:
        """How many vision tokens a picture becomes, tokens at the ends of rows among them."""
        return self.layout(*self.picture).length


class _Decoder(LladaDecoder):
    """The decoder with what makes vision tokens, as the published weights are nested."""

    def __init__(self, config: LladaVConfig):
        super().__init__(config.decoder())
        tower = SiglipVisionConfig(**config.vision, hidden_act="gelu_pytorch_tanh", vision_use_head=False)
        self.vision_tower = nn.ModuleDict({"vision_tower": SiglipVisionModel(tower)})
        width = config.hidden_size
        self.mm_projector = nn.Sequential(nn.Linear(tower.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        if config.mm_patch_merge_type == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.randn(width) * width**-0.5)
        else:
            self.image_newline = None


class LladaVModel(MdlmModel):
    """`vision_tokens(images)`, `logits(vision, prompt, response)`, `mask_embedding` and the rest of `MdlmModel`.

    `prompt` holds `IMAGE` where the vision tokens belong.
    """

    config_class = LladaVConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: LladaVConfig):
        PreTrainedModel.__init__(self, config)
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tower.requires_grad_(False)
        self.post_init()

    _init_weights = PreTrainedModel._init_weights

    @property
    def tower(self) -> SiglipVisionModel:
        return self.model.vision_tower["vision_tower"]

    @property
    def head(self) -> nn.Linear:
        return self.lm_head

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder's layers, the first first."""
        return self.model.layers

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.embed_tokens

    def features(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch patches features"]:
        """What the tower's last stored layer gives for all views of pictures in [0, 1], one view after another.

        Raises ValueError for pictures that become other vision tokens than those of `config.picture` do.
        """
        config, place = self.config, self.config.layout(*images.shape[-2:])
        if place != config.layout(*config.picture):
            shape = list(images.shape[-2:])
            raise ValueError(f"images of {shape} pixels are cut in another way than picture={config.picture}: set that")
        crops = views(images, config.vision["image_size"], config.image_aspect_ratio, place.tiles)
        pixels = (crops * 2 - 1).flatten(0, 1).to(self.dtype)
        states = self.tower.encoder(inputs_embeds=self.tower.embeddings(pixels)).last_hidden_state
        return states.unflatten(0, crops.shape[:2]).flatten(1, 2)

    def tokens_of(self, mask: Float[Tensor, "h w"]) -> Bool[Tensor, " vision"]:
        """Which vision tokens see some of what `mask` covers in a picture: at least a tenth of a pixel's opacity."""
        config, place = self.config, self.config.layout(*self.config.picture)
        crops = views(mask.expand(1, 3, -1, -1), config.vision["image_size"], config.image_aspect_ratio, place.tiles)
        patches = F.max_pool2d(crops[0, :, 0], config.vision["patch_size"]).flatten()
        return self.arranged(patches[None, :, None], patches.new_zeros(1))[0, :, 0] > 0.1

    def project(self, features: Float[Tensor, "batch patches features"]) -> Float[Tensor, "batch vision dim"]:
        """Vision tokens from the tower's features."""
        return self.arranged(self.model.mm_projector(features.to(self.dtype)), self.model.image_newline)

    def arranged(
        self, tokens: Float[Tensor, "batch patches dim"], newline: Float[Tensor, " dim"] | None
    ) -> Float[Tensor, "batch vision dim"]:
        """Tokens of all views' patches in the order that the decoder gets them."""
        return in_rows(tokens, self.config.layout(*self.config.picture), newline)

    @property
    def whole(self) -> int:
        """How many vision tokens, the first ones, are a square grid over the whole picture."""
        return self.config.grid**2

    def states(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        response: Int[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response dim"]:
        """What the head makes logits of, at every response position."""
        x, places, seen = self.joined(vision, prompt, response)
        states = self.model(inputs_embeds=x, attention_mask=seen, position_ids=places).last_hidden_state
        return states[:, states.shape[1] - response.shape[1] :]

    def joined(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        response: Int[Tensor, "batch response"],
    ) -> tuple[Float[Tensor, "batch position dim"], Int[Tensor, "batch position"], Bool[Tensor, "batch position"]]:
        """What the decoder is given: [vision | prompt | response], their positions, and which of them are seen."""
        position_ids, attention_mask = splice(prompt, vision.shape[1], response.shape[1], self.config.pad_id)
        attention_mask[:, attention_mask.shape[1] - response.shape[1] :] = response != ABSENT
        embeds = self.model.embed_tokens(torch.cat([prompt, response], 1).clamp(min=0))
        return torch.cat([vision.to(embeds.dtype), embeds], 1), position_ids, attention_mask

    @torch.no_grad()
    def response_attention(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        response: Int[Tensor, "batch response"],
        reduce: Callable[[Float[Tensor, "batch head response position"]], Tensor],
    ) -> list[Tensor]:
        """`reduce` of every layer's attention from the response's positions to [vision | prompt | response].

        Computed once more from the inputs of the layers' attention, which are caught by hooks.
        """
        _, _, attention_mask = self.joined(vision, prompt, response)
        reduced, length = [], response.shape[1]

        def add(layer, _, kwargs: dict) -> None:
            x, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
            turn = [part[:, None] for part in (cos, sin)]
            queries = layer.q_proj(x[:, -length:]).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
            keys = layer.k_proj(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
            queries = queries * turn[0][..., -length:, :] + rotate_half(queries) * turn[1][..., -length:, :]
            keys = repeat_kv(keys * turn[0] + rotate_half(keys) * turn[1], layer.num_key_value_groups)
            weight = (queries @ keys.mT).float() * layer.scaling
            reduced.append(reduce(weight.masked_fill(~attention_mask[:, None, None], -torch.inf).softmax(-1)))

        hooks = [layer.self_attn.register_forward_pre_hook(add, with_kwargs=True) for layer in self.model.layers]
        try:
            self.states(vision, prompt, response)
        finally:
            for hook in hooks:
                hook.remove()
        return reduced

    def response_logits(
        self, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
    ) -> ResponseLogits:
        """For `lib.models.decoding`: logits of the masked positions only, with the authors' forbidden ids left out."""
        return ResponseLogits(self, vision, prompt)


class ResponseLogits:
    """A `lib.models.decoding.Selective`: logits of a model's response, computed anew at every step."""

    def __init__(
        self, model: LladaVModel, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
    ):
        self.model, self.vision, self.prompt = model, vision, prompt

    def start_block(self, block: Int[Tensor, "batch block"]) -> None:
        """Nothing is kept from one step to the next."""

    def logits_at(
        self, tokens: Int[Tensor, "batch response"], rows: Int[Tensor, " row"], positions: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        """Logits at `positions` of the named rows."""
        states = self.states(tokens, rows)
        index = torch.arange(len(rows), device=rows.device)[:, None], positions
        logits = self.model.head(states[index]).float()
        logits[..., self.model.config.forbidden] = -torch.inf
        return logits

    def states(
        self, tokens: Int[Tensor, "batch response"], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row response dim"]:
        """States of the named rows' responses."""
        return self.model.states(self.vision[rows], self.prompt[rows], tokens[rows])


class LladaV(Published):
    """A model with its tokenizer: texts in, texts out, in LLaDA-V's conversation template."""

    kind, config_kind, model_kind = "LLaDA-V", LladaVConfig, LladaVModel
    tokens = {"mask_id": "<|mdm_mask|>", "eos_id": "<|eot_id|>", "pad_id": "<|endoftext|>"}

    def _prompt(self, question: str) -> list[int]:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"<image>\n{question}"}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        parts = self.tokenizer(text.split("<image>"), add_special_tokens=False)["input_ids"]
        return [token for part in parts for token in (IMAGE, *part)][1:]
