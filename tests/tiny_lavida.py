"""A tiny random checkpoint in the layout of LaViDa's (`LlavaLladaForMaskedDiffusion`): as LLaDA-V's, other names."""

from pathlib import Path

import tiny_llada_v
import torch
from safetensors.torch import save_file

from lib.models.lavida import Lavida

VISION = tiny_llada_v.VISION | {"image_size": 42}  # 3 × 3 patches, so that pooling has an odd row and column
LAYER = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}
WHOLE = {"model.embed_tokens": "model.transformer.wte", "model.norm": "model.transformer.ln_f"}
WHOLE |= {"lm_head": "model.transformer.ff_out"}


def config(**changes) -> dict:
    """As LaViDa's: LLaDA's names for the decoder, canvases as text."""
    made = tiny_llada_v.config()
    for name in ("num_key_value_heads", "attention_bias", "hidden_act", "forbidden"):
        del made[name]
    named = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    named |= {"intermediate_size": "mlp_hidden_size", "max_position_embeddings": "max_sequence_length"}
    made = {named.get(name, name): value for name, value in made.items()}
    return (
        made
        | {
            "architectures": ["LlavaLladaForMaskedDiffusion"],
            "activation_type": "silu",
            "block_type": "llama",
            "embedding_size": tiny_llada_v.VOCABULARY,
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": "[(42, 84), (84, 42), (84, 84)]",
            "include_bias": False,
            "layer_norm_type": "rms",
            "mm_spatial_pool_mode": "bilinear",
            "n_kv_heads": tiny_llada_v.HEADS,
            "rope": True,
            "vision": VISION,
            "weight_tying": False,
        }
        | changes
    )


def published(name: str) -> str:
    """LaViDa's name of one of LLaDA-V's weights."""
    module, kind = name.rsplit(".", 1)
    if module in WHOLE:
        return f"{WHOLE[module]}.{kind}"
    if not name.startswith("model.layers."):
        return name
    _, _, number, part = module.split(".", 3)
    return f"model.transformer.blocks.{number}.{LAYER[part]}.{kind}"


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    made = {published(name): value for name, value in tiny_llada_v.weights(seed).items()}
    draw = torch.Generator().manual_seed(seed)
    places = "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight"
    return made | {places: 0.1 * torch.randn(9, VISION["hidden_size"], generator=draw)}


def write(folder: Path, changes: dict | None = None, stored: dict[str, torch.Tensor] | None = None) -> str:
    """The checkpoint in one file; returns the folder's name."""
    tiny_llada_v.write(folder)
    for shard in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        shard.unlink()
    stored = weights() if stored is None else stored
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(tiny_llada_v.json.dumps(config(**(changes or {}))))
    return str(folder)


def lavida(folder: Path, **changes) -> Lavida:
    return Lavida.load(write(folder, changes))
