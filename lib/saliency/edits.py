"""Which parts of an edit's condition carry the edit, picture patches and words, and the condition without them.

DiSP's score carried over to an editor: its output is the mean of a Gaussian, whose Fisher matrix is a multiple of the
identity, so the Fisher–Jacobian score of a part of the condition is ‖J_i‖² = E ‖J_iᵀ ε‖² with signs ε. The first
denoising step, from pure noise, stands for the fully masked response. A patch of the source's latent is masked by
zeros, which is how InstructPix2Pix drops its picture, and a token of the instruction by leaving it out.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lib.kernels.fisher import signs
from lib.models.editor import prompt_embeds, tokenize
from lib.runtime.seeds import generator
from lib.saliency.masking import mask_top

CONDITIONS = ("picture", "instruction")
# Chosen before any of this was measured.
GRID = 8  # patches along each side of the picture
PROBES = 4


def condition_saliency(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "batch 4 lh lw"],
    texts: list[str],
    seed: int,
    probes: int = PROBES,
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, "batch length"]]:
    """Scores of the source's patches, `GRID` × `GRID` row by row, and of the instruction's tokens.

    `source` are unscaled latents. Tokens that are special or padding score 0. One forward pass and `probes` backward
    passes at the first denoising step, from the noise of `seed`.
    """
    unet, draw = pipe.unet, generator(seed, "condition saliency")
    last = pipe.scheduler.config.num_train_timesteps - 1
    noise = torch.randn(source.shape, generator=draw).to(source.device)
    tokens, words = tokenize(pipe, texts)["input_ids"], prompt_embeds(pipe, texts)
    source, words = source.clone().requires_grad_(), words.clone().requires_grad_()
    with torch.enable_grad():
        model_pred = unet(torch.cat([noise, source], 1), last, encoder_hidden_states=words).sample.float()
    patches, scores = torch.zeros(len(source), GRID**2), torch.zeros(tokens.shape)
    for k in range(probes):
        probe = signs(tuple(model_pred.shape), draw).to(model_pred.device)
        along = torch.autograd.grad(model_pred, (source, words), probe, retain_graph=k < probes - 1)
        cells = along[0].float().square().sum(1, keepdim=True)
        patches += F.adaptive_avg_pool2d(cells, GRID).flatten(1).cpu() / probes
        scores += along[1].float().square().sum(-1).cpu() / probes
    special = torch.tensor(pipe.tokenizer.all_special_ids)
    return patches, scores.masked_fill(torch.isin(tokens, special), 0)


def mask_condition(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "batch 4 lh lw"],
    texts: list[str],
    way: str,
    share: float,
    seed: int,
    batch: int,
) -> tuple[Float[Tensor, "batch 4 lh lw"], list[str]]:
    """Sources with the `share` of their patches that matters most set to zero, or texts without their first token in
    rank (for any share above 0). Raises ValueError for a way that is none of `CONDITIONS`."""
    if way not in CONDITIONS:
        raise ValueError(f"way={way!r} must be one of {', '.join(CONDITIONS)}")
    if share == 0:
        return source, texts
    masked, left = [source[:0]], []
    for k, rows in enumerate(tqdm(torch.arange(len(texts)).split(batch), desc="saliency", unit="batch", leave=False)):
        part, asked = source[rows], [texts[i] for i in rows.tolist()]
        patches, words = condition_saliency(pipe, part, asked, seed + k)
        if way == "picture":
            grid = mask_top(patches, share).view(-1, 1, GRID, GRID).float().to(source.device)
            part = part * (1 - F.interpolate(grid, part.shape[-2:]))
            left += asked
        else:
            tokens = tokenize(pipe, asked)["input_ids"]
            left += [_without(pipe, ids, int(place)) for ids, place in zip(tokens, words.argmax(1), strict=True)]
        masked.append(part)
    return torch.cat(masked), left


def _without(pipe: StableDiffusionInstructPix2PixPipeline, ids: Int[Tensor, " length"], place: int) -> str:
    kept = [token for k, token in enumerate(ids.tolist()) if k != place]
    return pipe.tokenizer.decode(kept, skip_special_tokens=True)
