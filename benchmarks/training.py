"""What makes a training step fast on this machine: plain or fused attention, bfloat16 or float32, which batch? And is a
whole step, as the studies take it, faster than a plain loop of diffusers or transformers?

The first are steps forward and backward of the base models, on random inputs. Whole steps have the optimizer in them:
`fit` with the study's own loss, beside `benchmarks.loops` on the same weights and draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import main, pair
from benchmarks.loops import Encoder, instruct_pix2pix_loss, loop, masked_loss
from lib.models import blocks
from lib.models.adapters import trainable
from lib.models.blocks import attention
from lib.models.editor import edit_loss, load_editor, prompt_embeds
from lib.models.mdlm import Mdlm, masked_diffusion_loss
from lib.runtime.training import fit
from lib.settings.paths import CHECKPOINTS
from lib.settings.sections import Train

STEPS = 6  # whole ones in a call, the optimizer made anew for them
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mkldnn_convolution", "convolution_backward", "_slow_conv2d_forward")


def rows(chosen: argparse.Namespace) -> list[dict]:
    """Ours is how the studies train; the peer changes one thing."""
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
    return made + [whole_unet_step(batch, chosen) for batch in (16, 32)] + [whole_mdlm_step(64, chosen)]


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


def whole_unet_step(batch: int, chosen: argparse.Namespace) -> dict:
    """Of the editor's U-Net."""
    own, peer = (load_editor(str(CHECKPOINTS / "editor"), chosen.device) for _ in range(2))
    trainable(own.unet)
    peer.unet.requires_grad_(True)
    cells, draw = own.unet.config.sample_size, torch.Generator().manual_seed(0)
    source, target = torch.randn(2, batch, 4, cells, cells, generator=draw)
    text, empty = prompt_embeds(own, ["make the skin dark"] * batch), prompt_embeds(own, [""])
    given = source, target, text, empty
    losses = (lambda d: edit_loss(own, *given, d)), (lambda d: instruct_pix2pix_loss(peer, *given, d))
    return whole_step(f"U-Net, batch {batch}", (own.unet, peer.unet), losses, batch, "diffusers, plain loop", chosen)


def whole_mdlm_step(batch: int, chosen: argparse.Namespace) -> dict:
    """Of the MDLM, its projector among what is trained."""
    own, twin = (Mdlm.load(str(CHECKPOINTS / "mdlm"), chosen.device).model for _ in range(2))
    config, draw, peer = own.config, torch.Generator().manual_seed(0), Encoder(twin)
    features = torch.randn(batch, config.vision_length, config.vision_features, generator=draw)
    prompt, response = (
        torch.randint(4, config.vocab_size, (batch, length), generator=draw)
        for length in (config.prompt_length, config.response_length)
    )
    losses = (
        lambda d: masked_diffusion_loss(own, own.project(features), prompt, response, d),
        lambda d: masked_loss(peer, features, prompt, response, d),
    )
    return whole_step(f"MDLM, batch {batch}", (own, peer), losses, batch, "transformers, plain loop", chosen)


def whole_step(
    case: str,
    modules: tuple[nn.Module, nn.Module],
    losses: tuple[Callable[[torch.Generator], Tensor], Callable[[torch.Generator], Tensor]],
    batch: int,
    peer: str,
    chosen: argparse.Namespace,
) -> dict:
    """`STEPS` of them. `difference`: of the first losses, relative; `products`: `product_share` of ours."""
    settings = Train(steps=STEPS, batch=batch, lr=1e-6)

    def ours() -> float:
        return fit(modules[0], losses[0], settings, label="whole step", seed=0)["loss"].iloc[0]

    def theirs() -> float:
        return loop(modules[1], losses[1], settings, "whole step")

    first = ours(), theirs()
    facts = {"difference": abs(first[0] / first[1] - 1), "products": product_share(ours)}
    return pair(f"{case}, whole step", ours, theirs, chosen, ("as the studies", peer), **facts)


def product_share(way: Callable[[], object]) -> float:
    """What share of the CPU's time goes into matrix products and convolutions, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        way()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    return sum(spent.get(name, 0) for name in PRODUCTS) / sum(spent.values())


main(__name__, rows, __file__)
