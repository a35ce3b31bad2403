"""The noise behind the probes of `lib.kernels.fisher_triton`, which itself never writes it."""

from typing import no_type_check

import torch
import triton
import triton.language as tl

from lib.kernels.fisher_triton import _draw, _group, _noise


@triton.jit(do_not_specialize=["size", "probes", "seed"])
@no_type_check
def _noise_kernel(
    out,  # float32 [probe, row, vocab]
    size,
    probes,
    seed,
    NOISE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    length = size.to(tl.int64)
    for group in range(0, tl.cdiv(probes, GROUP)):
        drawn = _draw(seed, place, group, length, NOISE)
        for probe in range(group * GROUP, min(probes, (group + 1) * GROUP)):
            epsilon = _noise(drawn, probe - group * GROUP, NOISE)
            tl.store(out + probe * length + place, epsilon, place < size)


def noise_of(shape: tuple[int, int, int], seed: int, noise: str) -> torch.Tensor:
    """The noise ε [probe, row, vocab] behind the probes of logits of that size, on the default device."""
    out = torch.empty(shape, dtype=torch.float32)
    size = shape[1] * shape[2]
    options = {"NOISE": noise, "GROUP": _group(noise), "BLOCK": 1024}
    _noise_kernel[(triton.cdiv(size, 1024),)](out, size, shape[0], seed, **options)
    return out
