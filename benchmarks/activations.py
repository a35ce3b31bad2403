"""How much memory Fisher–Jacobian saliency of LLaDA-V takes beside the weights: activations kept, or computed again.

    python -m benchmarks.activations              # true widths, 1 and 2 of 32 layers, bfloat16: minutes on a CPU

Kept, probe after probe; computed again, all probes in one backward pass. On a CPU counted by torch's profiler as what
is allocated at a time, without the weights, for one sample. Every layer adds the same, so two depths give all 32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.full_size import LENGTHS, PROBES, llada_v
from benchmarks.harness import main, peak_mib
from lib.models.llada import IMAGE
from lib.models.llada_v import LladaVModel
from lib.saliency.jacobian import fisher_jacobian

DEPTHS, LAYERS = (1, 2), 32
SIDE = {"full": 512, "toy": 28}  # pixels of a picture; 512 is 3,699 vision tokens
WAYS = {"kept": False, "computed again": True}


def rows(chosen: argparse.Namespace, size: str = "full") -> Iterator[dict]:
    """A row a way and depth: `gb` at most at a time; and that of `LAYERS` layers by those."""
    found: dict[tuple[str, int], float] = {}
    for depth in DEPTHS:
        side = SIDE[size]
        model = llada_v(size, chosen.device, num_hidden_layers=depth, picture=[side, side])
        config, draw = model.config, torch.Generator().manual_seed(0)
        vision = torch.randn(1, config.vision_length, config.hidden_size, generator=draw).to(model.mask_embedding)
        prompt = torch.randint(4, 100, (1, LENGTHS[size][-1]), generator=draw).to(chosen.device)
        prompt[:, 0] = IMAGE

        def scores(model=model, vision=vision, prompt=prompt) -> torch.Tensor:
            return fisher_jacobian(model, vision, prompt, probes=PROBES)

        for way, again in WAYS.items():
            with patch.object(LladaVModel, "supports_gradient_checkpointing", again):
                peak = peak_mib(scores) * 2**20 if chosen.device == "cuda" else peak_bytes(scores)
            found[way, depth] = peak / 1e9
            yield {"activations": way, "layers": depth, "gb": found[way, depth]}
    few, more = DEPTHS
    for way in WAYS:
        a_layer = (found[way, more] - found[way, few]) / (more - few)
        yield {"activations": way, "layers": LAYERS, "gb": found[way, more] + (LAYERS - more) * a_layer}


def peak_bytes(way: Callable[[], object]) -> int:
    """The most bytes that `way` holds at a time on the CPU, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        way()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


main(__name__, rows, __file__)
