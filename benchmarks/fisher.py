"""What do Fisher probes cost, and the sum of squares of the gradients that they give?

Eager draws noise for one probe after the other and multiplies it out: normal noise, as Hutchinson's method is mostly
written, or signs by `torch.randint`.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.harness import main, pair
from lib.kernels.fisher import NOISES, add_squared_norm, fisher_probes


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`difference` is the greatest of a sum of squares; probes are random, so there it is left out."""
    sizes = {41: 20, 1600: 320, 32_000: 16, 126_464: 4}  # vocabulary: positions
    if chosen.device == "cuda":
        sizes = {1600: 8192, 32_000: 1024, 126_464: 256}
    made = []
    for vocab, positions in sizes.items():
        for probes in (1, 4):
            made += of_probes(vocab, positions, probes, chosen)
    return made + [of_squares(dim, dtype, chosen) for dim in (128, 4096) for dtype in (torch.float32, torch.bfloat16)]


def of_probes(vocab: int, positions: int, probes: int, chosen: argparse.Namespace) -> list[dict]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(positions, vocab, generator=draw).mul(3).to(chosen.device)
    seeds = torch.Generator(chosen.device).manual_seed(0)
    made = []
    for noise in NOISES:
        peers = {"torch eager": eager}
        if chosen.device == "cuda":
            peers["torch.compile"] = torch.compile(eager)
        for name, peer in peers.items():
            made.append(
                pair(
                    f"vocab {vocab}, {positions} positions, {probes} probes, {noise}",
                    lambda noise=noise: fisher_probes(logits, probes, 0, noise),
                    lambda noise=noise, peer=peer: peer(logits, probes, noise, seeds),
                    chosen,
                    ("ours", f"{name}, {noise}"),
                )
            )
    return made


def of_squares(dim: int, dtype: torch.dtype, chosen: argparse.Namespace) -> dict:
    tokens = 2**20 // dim // 4 * (16 if chosen.device == "cuda" else 1)
    draw = torch.Generator().manual_seed(0)
    gradient = torch.randn(4, tokens, dim, generator=draw).to(chosen.device, dtype)
    scores = torch.zeros(4, tokens, device=chosen.device)
    expected = gradient.float().square().sum(-1)
    return pair(
        f"squares of {4 * tokens} gradients of {dim}, {str(dtype).removeprefix('torch.')}",
        lambda: add_squared_norm(scores, gradient),
        lambda: scores.add_(gradient.float().square().sum(-1)),
        chosen,
        difference=float((add_squared_norm(torch.zeros_like(scores), gradient) - expected).abs().max()),
    )


def eager(logits: Tensor, probes: int, noise: str, seeds: torch.Generator) -> list[Tensor]:
    p = logits.float().softmax(-1)
    made = []
    for _ in range(probes):
        if noise == "normal":
            epsilon = torch.randn(p.shape, generator=seeds, device=p.device)
        else:
            epsilon = torch.randint(0, 2, p.shape, generator=seeds, device=p.device).float() * 2 - 1
        scaled = p.sqrt() * epsilon
        made.append(scaled - p * scaled.sum(-1, keepdim=True))
    return made


main(__name__, rows, __file__)
