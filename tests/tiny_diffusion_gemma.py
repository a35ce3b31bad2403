"""A tiny random checkpoint in the layout of `google/diffusiongemma-26B-A4B-it`, tokenizer with it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
    PreTrainedTokenizerFast,
)

from lib.models.diffusion_gemma import DiffusionGemma

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|image>", "<|image|>", "<image|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|image|>{% else %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
VOCABULARY, CANVAS = 112, 8


def tokenizer() -> PreTrainedTokenizerFast:
    """A few merges of ASCII's bytes, with the published special tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    sizes = {"vocab_size": VOCABULARY, "initial_alphabet": alphabet}
    made.train_from_iterator(
        ["is it red or blue"], trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False, **sizes)
    )
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **named)


def config(sliding_window: int = 64) -> DiffusionGemmaConfig:
    """As published but for sizes and ids: two kinds of attention, experts, vision tokens that see one another."""
    ids = dict(zip(SPECIAL, tokenizer().convert_tokens_to_ids(SPECIAL), strict=True))
    text = DiffusionGemmaTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        sliding_window=sliding_window,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
        use_bidirectional_attention="vision",
        pad_token_id=ids["<pad>"],
        eos_token_id=ids["<eos>"],
        bos_token_id=ids["<bos>"],
    )
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        patch_size=4,
        pooling_kernel_size=3,
        position_embedding_size=64,
        standardize=True,
    )
    places = {"boi_token_id": "<|image>", "image_token_id": "<|image|>", "eoi_token_id": "<image|>"}
    places = {key: ids[token] for key, token in places.items()}
    return DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=CANVAS, **places)


def reference(sliding_window: int = 64, seed: int = 0) -> DiffusionGemmaForBlockDiffusion:
    """transformers' own model, random weights so large that positions matter to one another."""
    model = DiffusionGemmaForBlockDiffusion(config(sliding_window)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=draw)
            if name.endswith(("norm.weight", "scale")) or "layernorm" in name:
                value.copy_(1 + 0.2 * noise)
            elif name.endswith(("std_bias", "embed_tokens.weight", "position_embedding_table")):
                value.copy_(0.3 * noise)
            elif value.ndim > 1:
                value.copy_(1.5 * noise / value.shape[-1] ** 0.5)
    return model


def write(folder: Path, sliding_window: int = 64) -> str:
    """The checkpoint; returns the folder's name."""
    reference(sliding_window).save_pretrained(folder, max_shard_size="100KB")
    tokenizer().save_pretrained(folder)
    return str(folder)


def settings() -> dict:
    """What the published config leaves to the caller: one picture of 24 × 36 pixels is 2 × 3 vision tokens."""
    return {"picture": [24, 36], "soft_tokens": 6, "prompt_length": 24, "eos_id": SPECIAL.index("<turn|>")}


def diffusion_gemma(folder: Path, **changes) -> DiffusionGemma:
    return DiffusionGemma.load(write(folder, **changes), **settings())
