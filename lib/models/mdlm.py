"""A small multimodal masked-diffusion language model in LLaDA-V's shape.

Vision tower (frozen but in base training), two-layer projector, Transformer over [vision tokens | prompt |
response], all of which see one another. It answers by un-masking a fully masked response (Nie et al. 2025; You et al.
2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, PreTrainedModel

from lib.kernels.loss import weighted_cross_entropy
from lib.models.blocks import Block, LevelNorm
from lib.models.decoding import Selective
from lib.models.strict import strict, strict_words
from lib.runtime.processes import count, share
from lib.settings.paths import pretrained

ABSENT = -100  # where a response has no token: seen by none, counted by no loss (the number is torch's and LLaVA's)
FILLS = ("learnt", "absent")


class MdlmConfig(PreTrainedConfig):
    """Shapes and special ids. `vision` is a `CLIPVisionConfig` as a dictionary.

    levels: of which of the tower's hidden states a vision token is made, put side by side. LLaVA takes the last but one
    alone; an early one beside it keeps what lies at each place (ViP-LLaVA, Cai et al. 2024, arXiv 2312.00784).
    """

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
        levels: Sequence[int] = (-2,),
        **kwargs,
    ):
        if (attention := kwargs.pop("attention", "bidirectional")) != "bidirectional":  # as early checkpoints may say
            raise ValueError(f"attention={attention!r} is not implemented: it must be 'bidirectional'")
        self.levels = list(levels)
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
    def vision_features(self) -> int:
        """How many numbers the tower gives of each vision token."""
        return len(self.levels) * self.vision["hidden_size"]

    @property
    def vision_length(self) -> int:
        """How many vision tokens a picture becomes."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The `Block`s of our own model. Raises ValueError for another one, into which nothing here can look."""
    if not isinstance(model, MdlmModel) or not hasattr(model, "blocks"):
        raise ValueError(f"{type(model).__name__} has no blocks of ours: what looks into them needs the model 'mdlm'")
    return model.blocks


class MdlmModel(PreTrainedModel):
    """`vision_tokens(images)`, `logits(vision, prompt, response)` and `mask_embedding`."""

    config_class = MdlmConfig

    def __init__(self, config: MdlmConfig):
        super().__init__(config)
        self.tower = CLIPVisionModel(CLIPVisionConfig(**config.vision))
        self.tower.requires_grad_(False)
        self.projector = nn.Sequential(
            LevelNorm(len(config.levels)),
            nn.Linear(config.vision_features, config.width),
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
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def mask_embedding(self) -> Float[Tensor, " dim"]:
        """The mask token's embedding: what stands for a masked vision token, too."""
        return self.embedding.weight[self.config.mask_id]

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder's layers, the first first."""
        return self.blocks

    @property
    def whole(self) -> int:
        """How many vision tokens, the first ones, are a square grid over the whole picture."""
        return (self.config.vision["image_size"] // self.config.vision["patch_size"]) ** 2

    def tokens_of(self, mask: Float[Tensor, "h w"]) -> Bool[Tensor, " vision"]:
        """Which vision tokens see some of what `mask` covers in a picture."""
        return F.max_pool2d(mask[None], self.config.vision["patch_size"]).flatten() > 0

    def features(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch vision features"]:
        """The tower's hidden states of the config's levels, side by side, of pictures in [0, 1], patch by patch."""
        states = self.tower(pixel_values=images * 2 - 1, output_hidden_states=True).hidden_states
        return torch.cat([states[level][:, 1:] for level in self.config.levels], -1)

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
        """Logits of every response position. No vision tokens: no picture.

        Padded prompt positions and response positions that are `ABSENT` are seen by none; logits of these mean nothing.
        """
        return self.head(self.states(vision, prompt, response)).float()

    def states(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        response: Int[Tensor, "batch response"],
        places: Int[Tensor, " vision"] | None = None,
    ) -> Float[Tensor, "batch response dim"]:
        """What the head makes logits of, at every response position.

        places: which of the picture's tokens `vision` holds; by default the first ones.
        """
        x, attention_mask = self.embed_context(vision, prompt, places)
        x = torch.cat([x, self.embed_response(response)], 1)
        attention_mask = torch.cat([attention_mask, response != ABSENT], 1)[:, None, None]
        for block in self.blocks[:-1]:
            x = block(x, attention_mask)
        return self.norm(self.blocks[-1](x, attention_mask, last=response.shape[1]))

    def response_logits(
        self, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
    ) -> Selective:
        """Logits of the masked response positions, for `lib.models.decoding`."""
        return ResponseLogits(self, vision, prompt)

    def embed_context(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        places: Int[Tensor, " vision"] | None = None,
    ) -> tuple[Float[Tensor, "batch context dim"], Bool[Tensor, "batch context"]]:
        """States of vision tokens and prompt before the first block, and which of them are seen."""
        start = self.config.vision_length
        position = self.position[: vision.shape[1]] if places is None else self.position[places]
        position = torch.cat([position, self.position[start : start + prompt.shape[1]]])
        attention_mask = F.pad(prompt != self.config.pad_id, (vision.shape[1], 0), value=True)
        return torch.cat([vision, self.embedding(prompt)], 1) + position, attention_mask

    def embed_response(self, response: Int[Tensor, "batch response"]) -> Float[Tensor, "batch response dim"]:
        """States of the response before the first block."""
        start = self.config.vision_length + self.config.prompt_length
        return self.embedding(response.clamp(min=0)) + self.position[start : start + response.shape[1]]


class ResponseLogits:
    """A `Selective`: logits of a model's response to pictures and prompts, as `MdlmModel.logits` gives them.

    Not computed are rows that are full and, behind the last attention, the positions already filled.
    """

    @torch.no_grad()
    def __init__(
        self, model: MdlmModel, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]
    ):
        self.model = model
        self.before, attention_mask = model.embed_context(vision, prompt)
        self.visible = F.pad(attention_mask, (0, model.config.response_length), value=True)[:, None, None]

    def start_block(self, block: Int[Tensor, "batch block"]) -> None:
        """Nothing is kept from one step to the next."""

    @torch.no_grad()
    def logits_at(
        self, tokens: Int[Tensor, "batch response"], rows: Int[Tensor, " row"], positions: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        """Logits at `positions` of the named rows."""
        before = self.before[rows]
        x = torch.cat([before, self.model.embed_response(tokens[rows])], 1)
        visible = self.visible[rows][..., : x.shape[1]]
        for block in self.model.blocks[:-1]:
            x = block.states_at(x, visible)
        index = torch.arange(len(rows), device=rows.device)[:, None], positions + before.shape[1]
        return self.model.head(self.model.norm(self.model.blocks[-1].states_at(x, visible, index))).float()


def masked_diffusion_loss(
    model: nn.Module,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    response: Int[Tensor, "batch response"],
    draw: torch.Generator,
    places: Int[Tensor, " vision"] | None = None,
) -> Float[Tensor, ""]:
    """LLaDA's SFT objective: answer tokens masked with probability t, cross-entropy weighted by 1/t.

    L = E_t E_mask [ 1/(t L') Σ_masked −log p(token) ] with L' the response length (Nie et al. 2025, eq. 5).
    The t of a batch, which several processes share, are spread evenly over (0, 1] (Kingma et al. 2021), which lowers
    the variance. `places` as in `MdlmModel.states`. L' counts the end tokens that fill a response up, as LLaDA's does;
    positions that are `ABSENT` are neither masked nor counted, nor seen by the others.
    """
    batch, length = len(response) * count(), response.shape[1]
    t = (torch.rand(1, generator=draw) + torch.arange(batch) / batch) % 1
    t = t.clamp(min=1e-3)[torch.randperm(batch, generator=draw)][:, None]
    present = response != ABSENT
    masked = share(torch.rand(batch, length, generator=draw) < t).to(response.device) & present
    t = share(t).to(response.device)
    noisy = torch.where(masked, model.config.mask_id, response)
    states = model.states(vision, prompt, noisy, *([] if places is None else [places]))[masked]
    scale = (1 / (t * len(response) * present.sum(1, keepdim=True))).expand_as(masked)[masked]
    return weighted_cross_entropy(states, model.head.weight, response[masked], scale)


class Mdlm:
    """A model with its tokenizer: texts in, texts out.

    loss: what it is fine-tuned with. end: what is done about the end token while it answers, one of
    `lib.models.ending.ENDS`. fill: what fine-tuning makes of the tokens that fill an answer up, one of `FILLS`, see
    `targets`.
    """

    loss = staticmethod(masked_diffusion_loss)
    end, fill = "free", "learnt"

    def __init__(self, model: MdlmModel, tokenizer: CLIPTokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> Mdlm:
        """From a local folder, in float32. Raises ValueError for a checkpoint that is not whole."""
        source = pretrained(name)
        model = strict(MdlmModel, source, dtype=torch.float32)
        model.tower.requires_grad_(False)
        return cls(model.to(device).eval(), strict_words(CLIPTokenizer, source, model.config.vocab_size))

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
        most = getattr(config, "answer_length", None) or config.response_length
        return self._padded(answers, most, config.eos_id, "answer")

    def targets(self, responses: Int[Tensor, "batch response"]) -> Int[Tensor, "batch response"]:
        """Responses as `loss` takes them. Raises ValueError for a `fill` that is none of `FILLS`.

        "learnt": all of them, as LLaDA's SFT pads answers with its end token and counts that in the loss (Nie et al.
        2025, appendix B.1); the longer the response, the more of the loss is about the end. "absent": `ABSENT` stands
        behind the first end token, which is learnt, as where LLaDA-V's and DiSP's authors train, with one sample a
        device and so nothing to fill up. (With more their collator has it learnt, up to the longest of the batch.)
        """
        if self.fill not in FILLS:
            raise ValueError(f"fill={self.fill!r} must be one of {', '.join(FILLS)}")
        if self.fill == "learnt":
            return responses
        ended = (responses == self.model.config.eos_id).cumsum(1) > 0
        return responses.masked_fill(F.pad(ended[:, :-1], (1, 0)), ABSENT)

    def question_tokens(self, prompts: Int[Tensor, "batch prompt"]) -> Bool[Tensor, "batch prompt"]:
        """Which tokens of prompts are the question's: those that are not padding."""
        return prompts != self.model.config.pad_id

    def texts(self, responses: Int[Tensor, "batch response"]) -> list[str]:
        """Answers up to their first end token."""
        ended = (responses == self.model.config.eos_id).cumsum(1) > 0
        rows = [row[~end].tolist() for row, end in zip(responses, ended, strict=True)]
        decoded = self.tokenizer.batch_decode(rows, skip_special_tokens=False) if rows else []
        return [text.strip().replace(" ,", ",").replace(" - ", "-") for text in decoded]

    def _padded(self, texts: list[str], length: int, filler: int, what: str) -> Tensor:
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        most, longest = max(((len(row), text) for text, row in zip(texts, rows, strict=True)), default=(0, ""))
        if most > length:
            raise ValueError(f"{what}={longest!r} has {most} tokens: the model takes at most {length}")
        padded = [row + [filler] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(texts), length)
