"""What makes a training step fast on this machine: plain or fused attention, bfloat16 or float32, which batch?

Steps (forward and backward) of the base models as they are poisoned, on random inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn import functional as F

from benchmarks.harness import main, pair
from lib.models import blocks
from lib.models.adapters import trainable
from lib.models.blocks import attention
from lib.models.editor import load_editor
from lib.models.mdlm import Mdlm
from lib.settings.paths import CHECKPOINTS


def rows(chosen: argparse.Namespace) -> list[dict]:
    """Ours is how the studies train; the peer changes one thing. `per_second`: samples, ours."""
    steps = {"MDLM": (mdlm_step(chosen.device), 64), "U-Net": (unet_step(chosen.device), 32)}
    made = []
    for name, (step, batch) in steps.items():
        ways = {
            "plain attention": lambda step=step, batch=batch: step(batch),
            "fused attention": lambda step=step, batch=batch: step(batch, fused=True),
            "float32": lambda step=step, batch=batch: step(batch, half=False),
        }
        for own, peer in (("plain attention", "fused attention"), ("bfloat16", "float32")):
            made.append(pair(f"{name}, batch {batch}", ways["plain attention"], ways[peer], chosen, (own, peer)))
        for other in (batch // 4, batch * 2):
            scaled = pair(
                f"{name}, per sample",
                lambda step=step, batch=batch, other=other: [step(batch) for _ in range(max(1, other // batch))],
                lambda step=step, batch=batch, other=other: [step(other) for _ in range(max(1, batch // other))],
                chosen,
                (f"batch {batch}", f"batch {other}"),
            )
            made.append(scaled)
    return made


def mdlm_step(device: str) -> Callable:
    """A step of the MDLM: batch, attention, precision."""
    model = Mdlm.load(str(CHECKPOINTS / "mdlm"), device).model
    config = model.config

    def step(batch: int, fused: bool = False, half: bool = True) -> None:
        vision = torch.randn(batch, config.vision_length, config.width, device=device)
        prompt = torch.full((batch, config.prompt_length), 5, device=device)
        response = torch.full((batch, config.response_length), config.mask_id, device=device)
        blocks.attention = fused_attention if fused else attention
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = model.logits(vision, prompt, response)
        F.cross_entropy(logits.flatten(0, 1), response.flatten()).backward()
        blocks.attention = attention

    return step


def fused_attention(queries, keys, values, visible):
    """What `lib.models.blocks.attention` would be without its plain path."""
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)


def unet_step(device: str) -> Callable:
    """A step of the editor's U-Net: batch, attention, precision."""
    pipe = load_editor(str(CHECKPOINTS / "editor"), device)
    unet = trainable(pipe.unet)
    length, width = pipe.tokenizer.model_max_length, unet.config.cross_attention_dim

    def step(batch: int, fused: bool = False, half: bool = True) -> None:
        unet.set_attn_processor(AttnProcessor2_0() if fused else AttnProcessor())
        size = unet.config.sample_size
        noisy = torch.randn(batch, unet.config.in_channels, size, size, device=device)
        times = torch.full((batch,), 500, device=device)
        text = torch.randn(batch, length, width, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            guess = unet(noisy, times, encoder_hidden_states=text).sample
        guess.float().square().mean().backward()

    return step


main(__name__, rows, __file__)
