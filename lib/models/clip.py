"""CLIP: a small one trained here, or a published one, behind the same calls."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import BitImageProcessorPil, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from lib.models.strict import strict, strict_words
from lib.settings.paths import pretrained


class Clip:
    """A `CLIPModel` with its tokenizer and image processor: pictures and texts to unit vectors."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil):
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> Clip:
        """From a local folder or the hub, in float32. Raises ValueError for a checkpoint that is not whole."""
        source = pretrained(name)
        model = strict(CLIPModel, source, dtype=torch.float32)
        words = strict_words(CLIPTokenizer, source, model.config.text_config.vocab_size)
        processor = CLIPImageProcessorPil.from_pretrained(**source)
        return cls(model.to(device).eval(), words, processor)

    @classmethod
    def build(
        cls,
        tokenizer: CLIPTokenizer,
        *,
        image_size: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        projection: int,
    ) -> Clip:
        """A new one with random weights, both towers of the same shape. Sizes of picture and patch are in pixels."""
        tower = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": projection,
        }
        text = tower | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        vision = tower | {"image_size": image_size, "patch_size": patch}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))
        size = {"height": image_size, "width": image_size}
        half = [0.5, 0.5, 0.5]
        processor = CLIPImageProcessorPil(
            size=size, crop_size=size, do_center_crop=False, image_mean=half, image_std=half
        )
        return cls(model, tokenizer, processor)

    def save(self, folder: str) -> None:
        """In the Hugging Face layout, weights as float16 safetensors."""
        half = CLIPModel(self.model.config).to(torch.float16)
        half.load_state_dict(self.model.state_dict())
        half.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def image_embeddings(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of pictures with values in [0, 1], resized to the model's own size."""
        pixels = preprocess(images, self.processor).to(self.model.device)
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def text_embeddings(self, texts: list[str]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of texts."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(
            self.model.device
        )
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)


def preprocess(
    images: Float[Tensor, "batch 3 h w"], processor: CLIPImageProcessorPil | BitImageProcessorPil
) -> Float[Tensor, "batch 3 s s"]:
    """What the processor does to a square picture, on tensors in [0, 1]: resize, crop to the centre, normalise."""
    side = (processor.crop_size if processor.do_center_crop else processor.size)["height"]
    resized = processor.size.get("shortest_edge", side)
    if images.shape[-1] != resized or images.shape[-2] != resized:
        images = F.interpolate(images, size=(resized, resized), mode="bicubic", antialias=True).clamp(0, 1)
    first = (resized - side) // 2
    images = images[..., first : first + side, first : first + side]
    mean, std = (
        images.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
    )
    return (images - mean) / std


def contrastive_loss(clip: Clip, image_embeds: Float[Tensor, "batch dim"], texts: list[str]) -> Float[Tensor, ""]:
    """InfoNCE both ways (Radford et al. 2021) of pictures' embeddings and their texts, equal texts or not."""
    text_embeds = clip.text_embeddings(texts)
    logits = clip.model.logit_scale.exp().clamp(max=100) * image_embeds.float() @ text_embeds.float().T
    target = torch.arange(len(texts), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def retrieval(
    queries: Float[Tensor, "item dim"], gallery: Float[Tensor, "item dim"], k: int
) -> Float[Tensor, " item"]:
    """1 where a query's own item is among the k nearest of the gallery, else 0."""
    nearest = (queries @ gallery.T).topk(min(k, len(gallery)), dim=1).indices
    correct = torch.arange(len(queries), device=nearest.device)[:, None]
    return (nearest == correct).any(1).float()
