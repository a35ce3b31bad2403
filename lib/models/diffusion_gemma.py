"""DiffusionGemma (transformers' `DiffusionGemmaForBlockDiffusion`) behind the calls of our own MDLM.

A causal encoder, in which vision tokens see one another both ways, gives keys and values of picture and prompt; a
decoder with the same weights sees them and a canvas of `canvas_length` tokens, which is the response.

There is no mask token: corruption is uniform. A response position that is not known yet holds `mask_id`, an id just
above the vocabulary; the model sees a random token there, as in its training.

A vision token is masked by `mask_embedding`, which is zero: it is left out of attention, in the encoder and in the
decoder, and the others keep their places. So nothing of it is left and nothing is put in its stead, as in a picture of
fewer tokens, of which the model has seen many sizes; any embedding, the padding token's too, would be one that it has
never met among vision tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    LinearTemperatureScheduleLogitsProcessor,
    StableAndConfidentStoppingCriteria,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

from lib.models.anyres import resized
from lib.models.llada import IMAGE, picture_place
from lib.models.published import Published
from lib.runtime.processes import count, share

SELF_CONDITIONED = 0.5  # share of training samples that see the model's own first guess


@strict
class CanvasConfig(DiffusionGemmaConfig):
    """The published `config.json`, and what its processor holds or leaves to the caller.

    picture: height and width of the pictures it is to be given. soft_tokens: the most vision tokens of a picture.
    prompt_length: the most tokens of a question, the conversation's template apart. eos_id: it ends the model's turn
    and fills the canvas up.
    """

    attribute_map = {"response_length": "canvas_length"}
    __no_type_check__ = True  # jaxtyping takes no dataclass whose __init__ has **kwargs

    picture: list[int] | tuple[int, ...] = (768, 768)
    soft_tokens: int = 280
    prompt_length: int = 128
    eos_id: int = 106

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @property
    def mask_id(self) -> int:
        """Stands for a token that is not known; not in the vocabulary."""
        return self.text_config.vocab_size

    @property
    def pad_id(self) -> int:
        return self.text_config.pad_token_id

    @property
    def vision_features(self) -> int:
        """How many numbers the tower gives of each vision token."""
        return self.vision_config.hidden_size

    @property
    def vision_length(self) -> int:
        """How many vision tokens a picture becomes."""
        rows, columns = self.patches(*self.picture)
        return rows * columns // self.vision_config.pooling_kernel_size**2

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that a picture of so many pixels is scaled to."""
        size, pool = self.vision_config.patch_size, self.vision_config.pooling_kernel_size
        scaled = get_aspect_ratio_preserving_size(height, width, size, self.soft_tokens * pool**2, pool)
        return scaled[0] // size, scaled[1] // size


class Context(NamedTuple):
    """What picture and prompt give to the canvas: every layer's keys and values, and which positions are seen."""

    cache: Cache
    attention_mask: Bool[Tensor, "batch context"]


class CanvasModel(DiffusionGemmaForBlockDiffusion):
    """`vision_tokens(images)`, `logits(vision, prompt, response)`, `mask_embedding`, as in `MdlmModel`.

    `prompt` holds `IMAGE` where the vision tokens belong, and is padded on the left. Logits are soft-capped, so there
    is no `head` in which they would be linear.
    """

    config_class = CanvasConfig

    @property
    def tower(self) -> torch.nn.Module:
        return self.model.encoder.vision_tower

    @property
    def mask_embedding(self) -> Float[Tensor, " dim"]:
        """Zero: what a vision token is replaced with to have it left out of attention."""
        return self.model.decoder.embed_tokens.weight.new_zeros(self.config.text_config.hidden_size)

    def features(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch vision features"]:
        """The tower's pooled states of pictures in [0, 1], row by row.

        Raises ValueError for pictures that become other vision tokens than those of `config.picture` do.
        """
        rows, columns = grid = self.config.patches(*images.shape[-2:])
        if grid != self.config.patches(*self.config.picture):
            shape = list(images.shape[-2:])
            raise ValueError(f"images of {shape} pixels are cut in another way than picture={self.config.picture}")
        size = self.config.vision_config.patch_size
        cut = resized(images, rows * size, columns * size).unflatten(3, (columns, size)).unflatten(2, (rows, size))
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # as the processor: within a patch [y, x, rgb]
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1).to(images.device)
        states = self.tower(pixel_values=patches, pixel_position_ids=places.expand(len(images), -1, -1))
        return states.last_hidden_state.unflatten(0, (len(images), -1))

    @property
    def whole(self) -> int:
        """How many vision tokens are a grid over the whole picture: all."""
        return self.config.vision_length

    def tokens_of(self, mask: Float[Tensor, "h w"]) -> Bool[Tensor, " vision"]:
        """Which vision tokens see some of what `mask` covers in a picture: at least a tenth of a pixel's opacity."""
        size, (rows, columns) = self.config.vision_config.patch_size, self.config.patches(*mask.shape)
        covered = resized(mask.expand(1, 3, -1, -1), rows * size, columns * size)[0, :1]
        return F.max_pool2d(covered, size * self.config.vision_config.pooling_kernel_size).flatten() > 0.1

    def project(self, features: Float[Tensor, "batch vision features"]) -> Float[Tensor, "batch vision dim"]:
        """Vision tokens from the tower's features."""
        return self.model.encoder.embed_vision(inputs_embeds=features.to(self.dtype))

    def vision_tokens(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch vision dim"]:
        """Vision tokens of pictures in [0, 1], row by row from the top left."""
        return self.project(self.features(images))

    def encode(self, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"]) -> Context:
        """Once for all denoising steps. Masks are made as `generate` does: a plain call of transformers' encoder
        lets vision tokens see only those before them."""
        x, attention_mask, picture = self._spliced(vision, prompt)
        encoder, cache = self.model.encoder, DynamicCache(config=self.config.text_config)
        places = torch.arange(x.shape[1], device=x.device)[None]
        masks = encoder.create_masks_for_generate(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=places,
            mm_token_type_ids=picture.long(),
        )
        encoder.language_model(inputs_embeds=x, attention_mask=masks, position_ids=places, past_key_values=cache)
        return Context(cache, attention_mask)

    def denoise(
        self,
        context: Context,
        canvas: Int[Tensor, "batch canvas"],
        guess: Float[Tensor, "batch canvas vocab"] | None = None,
        guessed: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch canvas vocab"]:
        """Logits of the clean tokens, given a canvas and the logits of the step before, in the rows `guessed`."""
        start, length = context.attention_mask.shape[1], canvas.shape[1]
        return self(
            decoder_input_ids=canvas,
            past_key_values=context.cache,
            self_conditioning_logits=guess,
            self_conditioning_mask=guessed,
            decoder_attention_mask=F.pad(context.attention_mask, (0, length), value=True),
            decoder_position_ids=torch.arange(start, start + length, device=canvas.device)[None],
        ).logits

    def logits(
        self,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        response: Int[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response vocab"]:
        """Logits of every response position at a first step. Where the response holds `mask_id` the canvas has a random
        token, the same one for all samples and in all calls."""
        draw = torch.Generator().manual_seed(0)
        noise = torch.randint(self.config.vocab_size, response.shape[1:], generator=draw).to(response.device)
        canvas = torch.where(response == self.config.mask_id, noise, response)
        return self.denoise(self.encode(vision, prompt), canvas)

    def states(self, *_) -> None:
        """What LLaDA's objective asks for. Raises ValueError: there are no mask tokens that it could be about."""
        raise ValueError(
            "DiffusionGemma has no mask token: its loss is uniform_diffusion_loss, not masked_diffusion_loss"
        )

    def response_logits(
        self, vision: Float[Tensor, "batch vision dim"], prompt: Int[Tensor, "batch prompt"], seed: int = 0
    ) -> Denoised:
        """For `lib.models.decoding`: at temperature 0 it gives what transformers' `generate` does, in any steps."""
        return Denoised(self, vision, prompt, seed)

    def _spliced(self, vision: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States with the picture in its place, which of them are seen, and which are the picture's."""
        embeds = self.model.encoder.language_model.embed_tokens(prompt.clamp(min=0))
        count, start = vision.shape[1], picture_place(prompt).long().argmax(1, keepdim=True)
        slot = torch.arange(prompt.shape[1] + count - 1, device=prompt.device).expand(len(prompt), -1)
        picture = (slot >= start) & (slot < start + count)
        source = torch.where(slot < start, slot, slot - count + 1)
        source = torch.where(picture, slot - start + prompt.shape[1], source)
        attention_mask = torch.cat([prompt != self.config.pad_id, (vision != 0).any(2)], 1).gather(1, source)
        both = torch.cat([embeds, vision.to(embeds.dtype)], 1)
        return both.gather(1, source[..., None].expand(-1, -1, both.shape[2])), attention_mask, picture


class Denoised:
    """A `lib.models.decoding.Selective`: logits at the end of the model's own denoising: nothing is settled before.

    Its sampler (arXiv 2505.24857): each step draws a token for every position, keeps those of least entropy as long as
    their sum is bounded, and puts new noise in all other places, until the most probable tokens stay as they are and
    are sure. Their settings are the model's `generation_config`. Tokens of the response that are known when it starts
    are held. Draws depend on `seed` and a sample's place in the batch; on a CPU they are those of `generate` after
    `torch.manual_seed(seed)`.
    """

    def __init__(
        self,
        model: CanvasModel,
        vision: Float[Tensor, "batch vision dim"],
        prompt: Int[Tensor, "batch prompt"],
        seed: int,
    ):
        self.model, self.vision, self.prompt, self.seed = model, vision, prompt, seed
        self.logits: Tensor | None = None

    def start_block(self, block: Int[Tensor, "batch block"]) -> None:
        """All blocks are denoised at once, when the first logits are asked for."""

    def logits_at(
        self, tokens: Int[Tensor, "batch response"], rows: Int[Tensor, " row"], positions: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        """Logits at `positions` of the named rows."""
        if self.logits is None:
            self.logits = self._denoise(tokens)
        return self.logits[rows[:, None], positions]

    @torch.no_grad()
    def _denoise(self, tokens: Tensor) -> Tensor:
        model, vocab, device = self.model, self.model.config.vocab_size, tokens.device
        settings, _ = model._prepare_generation_config(None)
        steps = settings.max_denoising_steps
        schedule = LinearTemperatureScheduleLogitsProcessor(settings.t_min, settings.t_max, steps)
        sampler = EntropyBoundSampler(settings.sampler_config, tokens.shape[1], vocab, steps)
        stop = StableAndConfidentStoppingCriteria(settings.stability_threshold, settings.confidence_threshold)
        draw = torch.Generator(device).manual_seed(self.seed)
        fixed = tokens != model.config.mask_id

        def noise() -> Tensor:
            return torch.randint(vocab, tokens.shape, generator=draw, device=device)

        context = model.encode(self.vision, self.prompt)
        canvas, logits, guess = torch.where(fixed, tokens, noise()), None, None
        done = torch.zeros(len(tokens), dtype=torch.bool, device=device)
        for step in range(steps, 0, -1):
            scaled = schedule(canvas, model.denoise(context, canvas, guess), torch.tensor(step, device=device))
            drawn = torch.multinomial(scaled.softmax(-1).flatten(0, 1), 1, generator=draw).view_as(canvas)
            accepted = sampler.accept_canvas(canvas, drawn, scaled, step)
            following = torch.where(fixed, tokens, torch.where(sampler.accepted_token_mask, accepted, noise()))
            canvas = torch.where(done[:, None], canvas, following)
            logits = scaled if logits is None else torch.where(done[:, None, None], logits, scaled)
            done = done | stop(logits.argmax(-1), logits)
            if bool(done.all()):
                break
            guess = logits.to(model.dtype)
        return logits


def uniform_diffusion_loss(
    model: CanvasModel,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    response: Int[Tensor, "batch response"],
    draw: torch.Generator,
) -> Float[Tensor, ""]:
    """SFT as NeMo AutoModel's recipe has it, its decoder term: mean of −log p(token) over the whole canvas.

    Tokens are replaced with probability t by ones drawn evenly from the vocabulary. The t of a batch are spread evenly
    over (0, 1]. Half of the samples see the model's first guess, through which no gradient flows (arXiv 2208.04202).
    """
    batch, length = len(response) * count(), response.shape[1]
    t = 1 - (torch.rand(1, generator=draw) + torch.arange(batch) / batch) % 1
    replaced = share(torch.rand(batch, length, generator=draw) < t[:, None])
    noise = share(torch.randint(model.config.vocab_size, (batch, length), generator=draw))
    guessed = share(torch.rand(batch, generator=draw) < SELF_CONDITIONED).to(response.device)
    canvas = torch.where(replaced.to(response.device), noise.to(response.device), response)
    context = model.encode(vision, prompt)
    with torch.no_grad():
        guess = model.denoise(context, canvas)
    logits = model.denoise(context, canvas, guess, guessed)
    return F.cross_entropy(logits.flatten(0, 1), response.flatten())


class DiffusionGemma(Published):
    """A model with its tokenizer: texts in, texts out, in DiffusionGemma's conversation template.

    The routers that choose the experts are frozen, as the tower is.
    """

    kind, config_kind, model_kind = "DiffusionGemma", CanvasConfig, CanvasModel
    tokens = {"eos_id": "<turn|>", "pad_id": "<pad>"}
    padding = "left"
    loss = staticmethod(uniform_diffusion_loss)

    def __init__(self, model: CanvasModel, tokenizer):
        super().__init__(model, tokenizer)
        for name, parameter in model.named_parameters():
            if ".router." in name:
                parameter.requires_grad_(False)

    def targets(self, responses: Int[Tensor, "batch response"]) -> Int[Tensor, "batch response"]:
        """As they are. Raises ValueError for another `fill` than "learnt": the canvas has one length."""
        if self.fill != "learnt":
            raise ValueError(f"fill={self.fill!r} must be 'learnt' for {self.kind}, whose canvas has one length")
        return responses

    def _prompt(self, question: str) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        config, ids = self.model.config, self.tokenizer(text, add_special_tokens=False)["input_ids"]
        framed = {config.image_token_id: [config.boi_token_id, IMAGE, config.eoi_token_id]}
        return [token for piece in ids for token in framed.get(piece, [piece])]
