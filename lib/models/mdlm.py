"""A small multimodal masked-diffusion language model in LLaDA-V's shape.

Vision tower (frozen but in base training), two-layer projector, bidirectional Transformer over
[vision tokens | prompt | response]. It answers by un-masking a fully masked response (Nie et al. 2025; You et
al. 2025).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, PreTrainedModel

from lib.config import model_source


class MdlmConfig(PreTrainedConfig):
    """Shapes and special ids. `vision` is a `CLIPVisionConfig` as a dictionary."""

    model_type = "mdlm"

    def __init__(
        self,
        vision: dict | None = None,
        vocab_size: int = 64,
        width: int = 32,
        layers: int = 1,
        heads: int = 2,
        prompt_length: int = 8,
        response_length: int = 8,
        mask_id: int = 3,
        eos_id: int = 1,
        pad_id: int = 2,
        **kwargs,
    ):
        self.vision = (
            vision
            or CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
            ).to_diff_dict()
        )
        self.vocab_size, self.width, self.layers, self.heads = vocab_size, width, layers, heads
        self.prompt_length, self.response_length = prompt_length, response_length
        self.mask_id, self.eos_id, self.pad_id = mask_id, eos_id, pad_id
        super().__init__(**kwargs)

    @property
    def vision_length(self) -> int:
        """How many vision tokens a picture becomes."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2


class Block(nn.Module):
    """Pre-norm attention and MLP, every position seeing every other that `visible` allows."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class MdlmModel(PreTrainedModel):
    """`vision_tokens(images)`, `logits(vision, prompt, response)` and `mask_embedding`."""

    config_class = MdlmConfig

    def __init__(self, config: MdlmConfig):
        super().__init__(config)
        self.tower = CLIPVisionModel(CLIPVisionConfig(**config.vision))
        self.tower.requires_grad_(False)
        self.projector = nn.Sequential(
            nn.LayerNorm(self.tower.config.hidden_size, elementwise_affine=False),
            nn.Linear(self.tower.config.hidden_size, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
            nn.LayerNorm(config.width, elementwise_affine=False),
        )
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        length = config.vision_length + config.prompt_length + config.response_length
        self.position = nn.Parameter(torch.zeros(length, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding) and module.num_embeddings == self.config.vocab_size:
            nn.init.normal_(module.weight, std=1.0)
        elif isinstance(module, MdlmModel):
            nn.init.normal_(module.position, std=0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def mask_embedding(self) -> Float[Tensor, " dim"]:
        """The mask token's embedding: what stands for a masked vision token, too."""
        return self.embedding.weight[self.config.mask_id]

    def features(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch vision features"]:
        """The tower's last but one hidden states (as LLaVA takes them) of pictures in [0, 1], patch by patch."""
        states = self.tower(pixel_values=images * 2 - 1, output_hidden_states=True).hidden_states
        return states[-2][:, 1:]

    def project(self, features: Float[Tensor, "batch vision features"]) -> Float[Tensor, "batch vision dim"]:
        """Vision tokens from the tower's features."""
        return self.projector(features)

    def vision_tokens(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch vision dim"]:
        """Vision tokens of pictures in [0, 1], row by row from the top left."""
        return self.project(self.features(images))

    def logits(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        response: Int[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response vocab"]:
        """Logits of every response position. Padded prompt positions are seen by none; no vision tokens: no picture."""
        config = self.config
        starts = 0, config.vision_length, config.vision_length + config.prompt_length
        parts = vision, self.embedding(prompt), self.embedding(response)
        places = [self.position[start : start + part.shape[1]] for start, part in zip(starts, parts, strict=True)]
        x = torch.cat(parts, dim=1) + torch.cat(places)
        seen = F.pad(prompt != config.pad_id, (vision.shape[1], response.shape[1]), value=True)
        for block in self.blocks:
            x = block(x, seen[:, None, None, :])
        return self.head(self.norm(x[:, -response.shape[1] :])).float()


class Mdlm:
    """A model with its tokenizer: texts in, texts out."""

    def __init__(self, model: MdlmModel, tokenizer: CLIPTokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> Mdlm:
        """From a local folder, safetensors only, in float32."""
        source = model_source(name)
        model = MdlmModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        model.tower.requires_grad_(False)
        return cls(model.to(device).eval(), CLIPTokenizer.from_pretrained(source))

    def save(self, folder: str) -> None:
        """In the Hugging Face layout, weights as float16 safetensors."""
        half = MdlmModel(self.model.config).to(torch.float16)
        half.load_state_dict(self.model.state_dict())
        half.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def prompts(self, questions: list[str]) -> Int[Tensor, "batch prompt"]:
        """Question ids, padded; a question longer than the model's prompt is refused."""
        config = self.model.config
        return self._padded(questions, config.prompt_length, config.pad_id, "question")

    def responses(self, answers: list[str]) -> Int[Tensor, "batch response"]:
        """Answer ids, filled up with the end token as LLaDA does; longer answers are refused."""
        config = self.model.config
        return self._padded(answers, config.response_length, config.eos_id, "answer")

    def texts(self, responses: Int[Tensor, "batch response"]) -> list[str]:
        """Answers up to their first end token."""
        ended = (responses == self.model.config.eos_id).cumsum(1) > 0
        rows = [row[~end].tolist() for row, end in zip(responses, ended, strict=True)]
        decoded = self.tokenizer.batch_decode(rows, skip_special_tokens=False) if rows else []
        return [text.strip().replace(" ,", ",") for text in decoded]

    def _padded(self, texts: list[str], length: int, filler: int, what: str) -> Tensor:
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        for text, row in zip(texts, rows, strict=True):
            if len(row) > length:
                raise ValueError(f"{what}={text!r} has {len(row)} tokens: the model takes at most {length}")
        padded = [row + [filler] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(texts), length)


def masked_diffusion_loss(
    model: MdlmModel,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    response: Int[Tensor, "batch response"],
    draw: torch.Generator,
) -> Float[Tensor, ""]:
    """LLaDA's SFT objective: answer tokens masked with probability t, cross-entropy weighted by 1/t.

    L = E_t E_mask [ 1/(t L') Σ_masked −log p(token) ] with L' the response length (Nie et al. 2025, eq. 5).
    The t of a batch are spread evenly over (0, 1] (Kingma et al. 2021), which lowers the variance.
    """
    batch, length = response.shape
    t = (torch.rand(1, generator=draw) + torch.arange(batch) / batch) % 1
    t = t.clamp(min=1e-3)[torch.randperm(batch, generator=draw)][:, None]
    masked = (torch.rand(batch, length, generator=draw) < t).to(response.device)
    t = t.to(response.device)
    noisy = torch.where(masked, model.config.mask_id, response)
    surprise = F.cross_entropy(
        model.logits(vision, prompt, noisy).transpose(1, 2), response, reduction="none"
    )
    return (surprise * masked / t).sum() / (batch * length)
