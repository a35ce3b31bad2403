"""A tiny random checkpoint in the layout of `GSAI-ML/LLaDA-V`: config.json, shards with their index, tokenizer."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lib.models.llada_v import SYSTEM, LladaV

SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
WIDTH, MLP, LAYERS, HEADS, VOCABULARY = 32, 48, 2, 4, 320
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


def tokenizer() -> PreTrainedTokenizerFast:
    """A few merges of bytes, with the published special tokens and template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    sizes = {"vocab_size": VOCABULARY, "initial_alphabet": alphabet}
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False, **sizes)
    made.train_from_iterator([SYSTEM], trainer)
    named = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[1], "mask_token": SPECIAL[2]}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **named)


def config(**changes) -> dict:
    """As published, but for sizes and ids, and with the tower's shape."""
    words = tokenizer()
    ids = dict(zip(SPECIAL, words.convert_tokens_to_ids(SPECIAL), strict=True))
    return {
        "architectures": ["LlavaLLaDAModelLM"],
        "model_type": "llava_llada",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 126080,
        "eos_token_id": 126081,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": [[28 * across, 28 * down] for across in range(1, 4) for down in range(1, 4)],
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "max_position_embeddings": 512,
        "mm_hidden_size": VISION["hidden_size"],
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "model/siglip2-so400m-patch14-384",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": VOCABULARY,
        "vision": VISION,
        "prompt_length": 24,
        "response_length": 10,
        "mask_id": ids["<|mdm_mask|>"],
        "eos_id": ids["<|eot_id|>"],
        "pad_id": ids["<|endoftext|>"],
        "forbidden": [ids[SPECIAL[k]] for k in (1, 0, 3, 4)],
    } | changes


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every published weight."""
    narrow, inner = VISION["hidden_size"], VISION["intermediate_size"]
    tower = "model.vision_tower.vision_tower.vision_model"
    made = {
        "lm_head.weight": (VOCABULARY, WIDTH),
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "model.image_newline": (WIDTH,),
        "model.mm_projector.0.weight": (WIDTH, narrow),
        "model.mm_projector.0.bias": (WIDTH,),
        "model.mm_projector.2.weight": (WIDTH, WIDTH),
        "model.mm_projector.2.bias": (WIDTH,),
        f"{tower}.embeddings.patch_embedding.weight": (narrow, 3, 14, 14),
        f"{tower}.embeddings.patch_embedding.bias": (narrow,),
        f"{tower}.embeddings.position_embedding.weight": (4, narrow),
        f"{tower}.post_layernorm.weight": (narrow,),
        f"{tower}.post_layernorm.bias": (narrow,),
    }
    for k in range(LAYERS):
        layer = f"model.layers.{k}"
        made |= {f"{layer}.self_attn.{x}_proj.weight": (WIDTH, WIDTH) for x in "qkvo"}
        made |= {f"{layer}.mlp.{x}_proj.weight": (MLP, WIDTH) for x in ("gate", "up")}
        made |= {f"{layer}.{x}_layernorm.weight": (WIDTH,) for x in ("input", "post_attention")}
        made[f"{layer}.mlp.down_proj.weight"] = (WIDTH, MLP)
    for k in range(VISION["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{k}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            made[f"{layer}.self_attn.{name}.weight"] = (narrow, narrow)
            made[f"{layer}.self_attn.{name}.bias"] = (narrow,)
        made |= {f"{layer}.layer_norm{n}.{x}": (narrow,) for n in (1, 2) for x in ("weight", "bias")}
        made |= {f"{layer}.mlp.fc1.weight": (inner, narrow), f"{layer}.mlp.fc1.bias": (inner,)}
        made |= {f"{layer}.mlp.fc2.weight": (narrow, inner), f"{layer}.mlp.fc2.bias": (narrow,)}
    return made


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ones, so large that positions matter to one another."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in sorted(shapes().items()):
        noise = torch.randn(shape, generator=draw)
        if name.endswith(("norm.weight", "layer_norm1.weight", "layer_norm2.weight")):
            made[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            made[name] = 0.1 * noise
        elif "embed" in name or "newline" in name:
            made[name] = noise if "patch" not in name else 0.1 * noise
        else:
            made[name] = 1.5 * noise / shape[-1] ** 0.5
    return made


def write(folder: Path, changes: dict | None = None, stored: dict[str, torch.Tensor] | None = None) -> str:
    """The checkpoint in two shards, `changes` merged onto its config; returns the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = weights() if stored is None else stored
    names = sorted(stored)
    index = {}
    for k, part in enumerate((names[::2], names[1::2])):
        file = f"model-{k + 1:05}-of-00002.safetensors"
        save_file({name: stored[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(value.numel() * value.element_size() for value in stored.values())
    listed = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    (folder / "config.json").write_text(json.dumps(config(**(changes or {}))))
    tokenizer().save_pretrained(folder)
    return str(folder)


def llada_v(folder: Path, **changes) -> LladaV:
    return LladaV.load(write(folder, changes))
