"""What do arg-max token and probability cost, against a softmax of the logits?

Eager takes float32 probabilities of all positions and their maximum. LLaDA and its kin (arXiv 2502.09992) take float64
probabilities of all positions and gather the arg-max token's.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.harness import main, pair
from lib.kernels.confidence import SCORES, confidence, token_probability

Found = tuple[Tensor, Tensor]


def rows(chosen: argparse.Namespace) -> list[dict]:
    """`tokens` is the share of equal tokens, `difference` the greatest of the sureness.

    On a GPU also the bytes of logits read a second, as a share of what a copy of the same logits reads and writes.
    """
    sizes = {619: 512, 32_000: 16, 126_464: 4}  # vocabulary: positions
    if chosen.device == "cuda":
        sizes = {619: 8192, 32_000: 2048, 126_464: 1024}
    made = []
    for vocab, positions in sizes.items():
        for dtype in (torch.float32, torch.bfloat16):
            made += of_logits(vocab, positions, dtype, chosen)
    return made


def of_logits(vocab: int, positions: int, dtype: torch.dtype, chosen: argparse.Namespace) -> list[dict]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(positions, vocab, generator=draw).mul(3).to(chosen.device, dtype)
    token = logits.argmax(-1)
    case = f"vocab {vocab}, {str(dtype).removeprefix('torch.')}"

    peers = {"torch eager float32": eager, "LLaDA's float64": llada}
    if chosen.device == "cuda":
        peers["torch.compile float32"] = torch.compile(eager)
    made = []
    for name, peer in peers.items():
        made.append(
            pair(
                f"{case}, all positions",
                lambda: confidence(logits),
                lambda peer=peer: peer(logits),
                chosen,
                ("ours", f"{name}, all positions"),
                **agreement(confidence(logits), peer(logits)),
            )
        )
    for score in SCORES[1:]:
        made.append(
            pair(
                f"{case}, all positions, {score}",
                lambda score=score: confidence(logits, score),
                lambda score=score: eager_score(logits, score),
                chosen,
                ("ours", "torch eager float32, all positions"),
                **agreement(confidence(logits, score), eager_score(logits, score)),
            )
        )
    made.append(
        pair(
            f"{case}, all positions, given token",
            lambda: token_probability(logits, token),
            lambda: gathered(logits, token),
            chosen,
            ("ours", "LLaDA's float64, all positions"),
            difference=float((token_probability(logits, token) - gathered(logits, token)).abs().max()),
        )
    )
    if chosen.device == "cuda":
        made.append(beside_copy(case, logits, chosen))
    return made


def beside_copy(case: str, logits: Tensor, chosen: argparse.Namespace) -> dict:
    copy = torch.empty_like(logits)
    row = pair(f"{case}, bandwidth", lambda: confidence(logits), lambda: copy.copy_(logits), chosen, ("ours", "copy"))
    gigabytes = logits.numel() * logits.element_size() / 1e9
    ours, copied = gigabytes / row["ours_ms"] * 1e3, 2 * gigabytes / row["peer_ms"] * 1e3
    return row | {"ours_gb_s": ours, "copy_gb_s": copied, "share_of_copy": ours / copied}


def eager(logits: Tensor) -> Found:
    sureness, token = logits.float().softmax(-1).max(-1)
    return token, sureness


def eager_score(logits: Tensor, score: str) -> Found:
    p = logits.float().softmax(-1)
    if score == "margin":
        two = p.topk(2)
        return two.indices[..., 0], two.values[..., 0] - two.values[..., 1]
    return p.argmax(-1), (p * (p + 1e-10).log()).sum(-1)  # Dream's way


def llada(logits: Tensor) -> Found:
    token = logits.argmax(-1)
    return token, gathered(logits, token)


def gathered(logits: Tensor, token: Tensor) -> Tensor:
    return logits.double().softmax(-1).gather(-1, token[..., None])[..., 0]


def agreement(ours: Found, peers: Found) -> dict[str, float]:
    same = (ours[0] == peers[0]).double().mean()
    return {"tokens": float(same), "difference": float((ours[1] - peers[1]).abs().max())}


main(__name__, rows, __file__)
