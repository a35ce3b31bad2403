"""Fisher probes: random vectors whose covariance is the softmax Fisher matrix, from logits; and sums of squares of
the gradients that they give.

F = diag(p) − p pᵀ with p = softmax(logits) is the Hessian of log-sum-exp, the metric of the KL divergence. Of noise ε
with covariance I the probe g = √p ∘ ε − p ⟨√p, ε⟩ has covariance F, so E ‖Jᵀ g‖² = tr(Jᵀ F J) for any J. With
d_k = √p_k (e_k − p) and A_kl = ⟨Jᵀ d_k, Jᵀ d_l⟩, the variance of one probe is 2 ‖A‖² where ε is normal and
2 (‖A‖² − Σ A_kk²) where it is signs (Hutchinson, 1990): never more.

Policy: −inf is a probability of 0, whose entry of a probe is 0; NaN or +inf anywhere in a row, or a row of nothing but
−inf, gives a row of NaN. No gradient flows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels import describe, on_gpu
from lib.runtime.seeds import generator

NOISES = ("sign", "normal")


@torch.no_grad()
def fisher_probes(
    logits: Float[Tensor, "*batch vocab"], probes: int, seed: int, noise: str = "sign"
) -> Float[Tensor, "probe *batch vocab"]:
    """`probes` probes g of every row of logits, float32 (float64 of float64 logits).

    noise  "sign": ε is −1 or 1, each with probability ½. "normal": ε ~ N(0, 1).

    The same seed gives the same probes: by a `torch.Generator` on a CPU, by counters (Philox, Salmon et al. 2011) in
    the kernel, which is used for CUDA tensors but float64 ones. The two give different draws of one distribution.

    Raises ValueError for other shapes, dtypes or noises, `probes` below 1, and a seed outside 0 … 2^63 − 1.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim == 0 or not logits.shape[-1]:
        raise ValueError(f"logits is {describe(logits)}; allowed is floating [*batch, vocab] with vocab at least 1.")
    for name, value, least in (("probes", probes, 1), ("seed", seed, 0)):
        if type(value) is not int or not least <= value < 2**63:
            raise ValueError(f"{name} is {value!r}; allowed are the integers {least} to {2**63 - 1}.")
    if noise not in NOISES:
        raise ValueError(f"noise is {noise!r}; allowed are {', '.join(NOISES)}.")
    flat = logits.reshape(math.prod(logits.shape[:-1]), logits.shape[-1])
    if on_gpu(flat) and flat.dtype != torch.float64:
        from lib.kernels.fisher_triton import probes_of

        return probes_of(flat, probes, seed, noise).view(probes, *logits.shape)
    p = flat.softmax(-1, dtype=torch.promote_types(flat.dtype, torch.float32))
    draw = generator(seed, "fisher probes")
    shape = (probes, *p.shape)
    drawn = signs(shape, draw) if noise == "sign" else torch.randn(shape, generator=draw, dtype=p.dtype, device="cpu")
    return fisher_probe(p, drawn.to(p)).view(probes, *logits.shape)


def fisher_probe(
    p: Float[Tensor, "... vocab"], noise: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch vocab"]:
    """g = √p ∘ ε − p ⟨√p, ε⟩ of given noise ε; p is expanded to its shape."""
    scaled = p.sqrt() * noise
    return scaled.addcmul_(p, scaled.sum(-1, keepdim=True), value=-1)


@torch.no_grad()
def add_squared_norm(
    scores: Float[Tensor, "batch token"], gradient: Float[Tensor, "batch token dim"]
) -> Float[Tensor, "batch token"]:
    """scores += Σ_dim gradient², counted in float32 (float64 of a float64 gradient), in place; returns `scores`.

    Raises ValueError unless scores is float32, gradient floating, and their shapes and devices fit.
    """
    fits = isinstance(gradient, Tensor) and gradient.ndim == 3 and gradient.is_floating_point()
    if not fits:
        raise ValueError(f"gradient is {describe(gradient)}; allowed is floating [batch, token, dim].")
    place = gradient.shape[:2], gradient.device, torch.float32
    if not isinstance(scores, Tensor) or (scores.shape, scores.device, scores.dtype) != place:
        shape = list(gradient.shape[:2])
        raise ValueError(f"scores is {describe(scores)}; allowed is torch.float32 {shape} on {gradient.device}.")
    if on_gpu(gradient) and gradient.dtype != torch.float64:
        from lib.kernels.fisher_triton import add_squares

        return add_squares(scores, gradient)
    counted = torch.promote_types(gradient.dtype, torch.float32)
    return scores.add_(torch.linalg.vector_norm(gradient, dim=-1, dtype=counted).square_())


def signs(shape: tuple[int, ...], draw: torch.Generator) -> Float[Tensor, "*shape"]:
    """−1 and 1 with equal probability, float32, one random bit each: ten times as fast as normal noise."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 64), dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=draw)
    bits = torch.from_numpy(np.unpackbits(words.numpy().view(np.uint8), count=count))
    return bits.view(shape).float().mul_(2).sub_(1)
