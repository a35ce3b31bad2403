"""What one would write without this repository: plain training loops on diffusers' U-Net and transformers' encoder.

The losses are those of diffusers' `train_instruct_pix2pix.py` and LLaDA's GUIDELINES.md, drawn in our order so that
both can be compared. No accelerate, no progress kept: forward, backward, clipping, AdamW.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder

from lib.models.mdlm import MdlmModel
from lib.runtime.seeds import generator
from lib.settings.sections import Train

DROPOUT = 0.05  # of the conditions, as by default in the script


def loop(module: nn.Module, loss: Callable[[torch.Generator], Tensor], settings: Train, label: str) -> float:
    """Trains `module`; returns the first step's loss."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    module.train()
    values = []
    for step in range(settings.steps):
        with torch.autocast(parameters[0].device.type, torch.bfloat16):
            value = loss(generator(0, label, step))
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    return values[0]


def instruct_pix2pix_loss(pipe, source: Tensor, target: Tensor, text: Tensor, empty: Tensor, draw) -> Tensor:
    """With diffusers' default attention and DDPM's noise."""
    scheduler, batch = DDPMScheduler.from_config(pipe.scheduler.config), len(source)
    latents = target * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=draw)
    times = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=draw)
    noisy = scheduler.add_noise(latents, noise, times)
    dropped = torch.rand(batch, generator=draw)
    text = torch.where((dropped < 2 * DROPOUT)[:, None, None], empty, text)
    kept = 1 - ((dropped >= DROPOUT) & (dropped < 3 * DROPOUT)).to(source.dtype)[:, None, None, None]
    wanted = noise
    if scheduler.config.prediction_type == "v_prediction":
        wanted = scheduler.get_velocity(latents, noise, times)
    guess = pipe.unet(torch.cat([noisy, kept * source], 1), times, encoder_hidden_states=text).sample
    return F.mse_loss(guess.float(), wanted.float())


class Encoder(nn.Module):
    """transformers' `CLIPEncoder`, which is our decoder's shape, with the weights of an `MdlmModel` around it."""

    def __init__(self, model: MdlmModel):
        super().__init__()
        config = model.config
        self.config, self.projector, self.embedding = config, model.projector, model.embedding
        self.position, self.norm, self.head = model.position, model.norm, model.head
        shape = CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            hidden_act="gelu",
        )
        shape._attn_implementation = "sdpa"
        self.encoder = CLIPEncoder(shape)
        for layer, block in zip(self.encoder.layers, model.blocks, strict=True):
            layer.load_state_dict(renamed(block))

    def forward(self, features: Tensor, prompt: Tensor, response: Tensor) -> Tensor:
        words = self.embedding(torch.cat([prompt, response], 1))
        states = torch.cat([self.projector(features), words], 1) + self.position
        seen = F.pad(prompt != self.config.pad_id, (features.shape[1], response.shape[1]), value=True)
        states = self.encoder(inputs_embeds=states, attention_mask=seen[:, None, None]).last_hidden_state
        return self.head(self.norm(states))[:, -response.shape[1] :]


def renamed(block: nn.Module) -> dict[str, Tensor]:
    """Weights of a `Block` under the names of a `CLIPEncoderLayer`."""
    parts = {
        "layer_norm1": block.before_attention,
        "layer_norm2": block.before_mlp,
        "self_attn.out_proj": block.out,
        "mlp.fc1": block.mlp[0],
        "mlp.fc2": block.mlp[2],
    }
    made = {f"{name}.{kind}": tensor for name, part in parts.items() for kind, tensor in part.state_dict().items()}
    for kind, tensor in block.qkv.state_dict().items():
        made |= {f"self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", tensor.chunk(3), strict=True)}
    return made


def masked_loss(model: Encoder, features: Tensor, prompt: Tensor, response: Tensor, draw) -> Tensor:
    """Cross-entropy over the masked positions by their masking rate."""
    batch, length = response.shape
    t = (torch.rand(1, generator=draw) + torch.arange(batch) / batch) % 1
    t = t.clamp(min=1e-3)[torch.randperm(batch, generator=draw)][:, None]
    masked = torch.rand(batch, length, generator=draw) < t
    logits = model(features, prompt, response.masked_fill(masked, model.config.mask_id))
    surprise = F.cross_entropy(logits[masked].float(), response[masked], reduction="none")
    return (surprise / t.expand_as(masked)[masked]).sum() / (batch * length)
