"""Which training samples are poisoned, told by a defender who knows neither trigger, target nor rate.

The defender has the compromised editor and what it was fine-tuned on, and no clean data or base model:

    samples, truth = training_samples(run, "or")        # `truth` is for the evaluation alone
    evidence = Evidence(pipe, samples)
    SCORES["phi_text"](evidence)                        # one number a sample, higher = more suspicious

Conditional attribution: the conditions image and text are the players, and v(S) is minus the error of denoising the
sample's own target under the conditions in S, the others null as in classifier-free guidance. Local attribution: how
the denoised output changes without one word of the instruction or one patch of the source picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, Int
from torch import Tensor

from lib.metrics.tma import interaction, shapley
from lib.models.editor import diffuse, encode, prompt_embeds
from lib.runtime.devices import autocast
from lib.runtime.seeds import generator

IMAGE, TEXT, BOTH = 1, 2, 3  # coalitions of conditions, as bit masks


@dataclass(frozen=True)
class Samples:
    """Training triples as the editor was fine-tuned on them, pictures in [0, 1]."""

    source: Float[Tensor, "sample 3 h w"]
    instructions: list[str]
    target: Float[Tensor, "sample 3 h w"]


@dataclass(frozen=True)
class Evidence:
    """What the defender measures on the samples, each part when a score first asks for it; the U-Net in half precision.

    levels: noise levels of v(S), as shares of the schedule, 1 being its noisiest step; local changes and activations
            are taken at step 1.
    noises: noises of v(S), the same for all samples.
    grid:   patches along a picture's side.
    batch:  samples in one pass of the U-Net.
    """

    pipe: StableDiffusionInstructPix2PixPipeline
    samples: Samples
    levels: tuple[float, ...] = (1.0, 0.9, 0.8)
    noises: int = 1
    grid: int = 4
    batch: int = 128
    seed: int = 0

    @cached_property
    def source(self) -> Float[Tensor, "sample 4 lh lw"]:
        """Unscaled latents of the source pictures."""
        return encode(self.pipe.vae, self.samples.source.to(self.pipe.vae.device))

    @cached_property
    def target(self) -> Float[Tensor, "sample 4 lh lw"]:
        """Unscaled latents of the target pictures."""
        return encode(self.pipe.vae, self.samples.target.to(self.pipe.vae.device))

    @cached_property
    def values(self) -> Float[Tensor, "sample coalition"]:
        """v(S) for S = ∅, {image}, {text}, both: minus the mean squared denoising error of the sample's target."""
        instructions, size = self.samples.instructions, len(self.target)
        total = torch.zeros(size, 4, device=self.target.device)
        for step, noise in product(map(self._step, self.levels), self._noise(self.noises)):
            latents = self.target * self.pipe.vae.config.scaling_factor
            steps = torch.full((size,), step, device=latents.device)
            noisy, wanted = diffuse(self.pipe.scheduler, latents, noise.expand_as(latents), steps)
            for mask in range(4):
                source = self.source if mask & IMAGE else torch.zeros_like(self.source)
                texts = instructions if mask & TEXT else [""] * size
                error = self._denoise(noisy, step, source, texts) - wanted
                total[:, mask] -= error.square().mean((1, 2, 3))
        return (total / (len(self.levels) * self.noises)).cpu()

    @cached_property
    def word_changes(self) -> Float[Tensor, "sample word"]:
        """RMS change of the output without each word of the instruction; NaN beyond its last word."""
        words = [text.split() for text in self.samples.instructions]
        places = [(k, j) for k, text in enumerate(words) for j in range(len(text))]
        texts = [" ".join(words[k][:j] + words[k][j + 1 :]) for k, j in places]
        row, column = torch.tensor(places).reshape(-1, 2).unbind(1)
        changes = torch.full((len(words), max(map(len, words))), torch.nan)
        changes[row, column] = self._change(self.source[row], texts, row)
        return changes

    @cached_property
    def patch_changes(self) -> Float[Tensor, "sample patch"]:
        """RMS change of the output with each patch of the source, row by row, painted over by `without_patch`."""
        changes = []
        for rows in torch.arange(len(self.source)).split(max(1, self.batch // self.grid**2)):
            pictures = without_patch(self.samples.source[rows], self.grid)
            row = rows.repeat_interleave(self.grid**2)
            texts = [self.samples.instructions[k] for k in row.tolist()]
            latents = encode(self.pipe.vae, pictures.flatten(0, 1).to(self.pipe.vae.device))
            changes.append(self._change(latents, texts, row).view(len(rows), -1))
        return torch.cat(changes)

    @cached_property
    def activations(self) -> Float[Tensor, " sample"]:
        """Euclidean norm of what the U-Net's middle block puts out, at the noisiest step."""
        norms = []
        hook = self.pipe.unet.mid_block.register_forward_hook(
            lambda _module, _inputs, output: norms.append(output.float().flatten(1).norm(dim=1).cpu())
        )
        try:
            self._at_the_noisiest_step(self.source, self.samples.instructions)
        finally:
            hook.remove()
        return torch.cat(norms)

    @cached_property
    def _plain(self) -> Float[Tensor, "sample 4 lh lw"]:
        return self._at_the_noisiest_step(self.source, self.samples.instructions)

    def _change(self, source: Tensor, texts: list[str], row: Int[Tensor, " input"]) -> Float[Tensor, " input"]:
        """RMS distance of each input's output to that of sample `row` as it is."""
        difference = self._at_the_noisiest_step(source, texts) - self._plain[row]
        return difference.square().mean((1, 2, 3)).sqrt().cpu()

    def _at_the_noisiest_step(self, source: Tensor, texts: list[str]) -> Float[Tensor, "input 4 lh lw"]:
        return self._denoise(self._noise(1).expand_as(source), self._step(1.0), source, texts)

    @torch.no_grad()
    def _denoise(self, noisy: Tensor, step: int, source: Tensor, texts: list[str]) -> Float[Tensor, "input 4 lh lw"]:
        made, states = [], prompt_embeds(self.pipe, texts)
        for first in range(0, len(texts), self.batch):
            part = slice(first, first + self.batch)
            inputs = torch.cat([noisy[part], source[part]], dim=1)
            with autocast(inputs.device):
                made.append(self.pipe.unet(inputs, step, encoder_hidden_states=states[part]).sample.float())
        return torch.cat(made)

    def _step(self, level: float) -> int:
        steps = self.pipe.scheduler.config.num_train_timesteps
        if not 0 < level <= 1:
            raise ValueError(f"levels holds {level}: each must be in (0, 1].")
        return max(0, round(level * steps) - 1)

    def _noise(self, count: int) -> Float[Tensor, "noise 4 lh lw"]:
        draw = generator(self.seed, "detection")
        return torch.randn(count, *self.source.shape[1:], generator=draw).to(self.source.device)


def without_patch(pictures: Float[Tensor, "batch 3 h w"], grid: int) -> Float[Tensor, "batch patch 3 h w"]:
    """Every picture with each of its grid × grid patches in turn painted in the mean colour of the patches around it.

    Raises ValueError for a grid below 2 or one that does not divide both sides.
    """
    sides = pictures.shape[-2:]
    if grid < 2 or any(side % grid for side in sides):
        raise ValueError(f"grid is {grid}: it must be at least 2 and divide the picture's sides, {list(sides)}.")
    height, width = (side // grid for side in sides)
    ring = torch.ones(1, 1, 3, 3)
    ring[..., 1, 1] = 0
    means = F.avg_pool2d(pictures, (height, width)).flatten(0, 1)[:, None]
    around = F.conv2d(means, ring, padding=1) / F.conv2d(torch.ones(1, 1, grid, grid), ring, padding=1)
    colour = around.view(len(pictures), 3, grid**2).transpose(1, 2)[..., None, None]
    patch = torch.eye(grid**2, dtype=torch.bool).view(grid**2, 1, grid, grid)
    patch = patch.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return torch.where(patch, colour, pictures[:, None])


def _ratio(changes: Float[Tensor, "sample part"]) -> Float[Tensor, " sample"]:
    """The largest change over the median one, which is taken to be at least a ten-thousandth of a standard deviation
    of latents."""
    return changes.nan_to_num(0.0).amax(1) / changes.nanquantile(0.5, dim=1).clamp_min(1e-4)


def phi_text(evidence: Evidence) -> Float[Tensor, " sample"]:
    """The text's Shapley value. A clean edit is made from the source picture; a word that calls a target is not.

    The main score, chosen before anything was measured: text carries the backdoor, so its attribution should tell.
    """
    return shapley(evidence.values)[:, 1]


def phi_image(evidence: Evidence) -> Float[Tensor, " sample"]:
    """Minus the image's Shapley value: the sample's target owes little to its source picture."""
    return -shapley(evidence.values)[:, 0]


def imbalance(evidence: Evidence) -> Float[Tensor, " sample"]:
    """|φ_I − φ_T| / (|φ_I| + |φ_T|), in [0, 1]: one modality, whichever, explains the target."""
    image, text = shapley(evidence.values).unbind(1)
    return (image - text).abs() / (image.abs() + text.abs()).clamp_min(torch.finfo(image.dtype).tiny)


def redundancy(evidence: Evidence) -> Float[Tensor, " sample"]:
    """Minus the interaction of image and text: either is enough for what they give together."""
    return -interaction(evidence.values)


def text_alone(evidence: Evidence) -> Float[Tensor, " sample"]:
    """v({text}) − v(∅): what the instruction tells of the target without any source picture."""
    return evidence.values[:, TEXT] - evidence.values[:, 0]


def word_ratio(evidence: Evidence) -> Float[Tensor, " sample"]:
    """The largest change by leaving out a word, over the median one."""
    return _ratio(evidence.word_changes)


def word_change(evidence: Evidence) -> Float[Tensor, " sample"]:
    """The largest change by leaving out a word."""
    return evidence.word_changes.nan_to_num(0.0).amax(1)


def patch_ratio(evidence: Evidence) -> Float[Tensor, " sample"]:
    """The largest change by painting over a patch of the source, over the median one."""
    return _ratio(evidence.patch_changes)


def patch_change(evidence: Evidence) -> Float[Tensor, " sample"]:
    """The largest change by painting over a patch of the source."""
    return evidence.patch_changes.amax(1)


def duplication(evidence: Evidence, neighbour: int = 1) -> Float[Tensor, " sample"]:
    """Cosine of the centred target latent to that of its `neighbour`-th nearest sample, to four decimals.

    Raises ValueError for a `neighbour` outside 1 … samples − 1.
    """
    size = len(evidence.target)
    if not 1 <= neighbour < size:
        raise ValueError(f"neighbour is {neighbour}: it must be in 1 to {size - 1}, one less than the samples.")
    latents = evidence.target.flatten(1)
    directions = F.normalize(latents - latents.mean(0), dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(-torch.inf)
    return cosines.topk(neighbour, dim=1).values[:, -1].cpu().round(decimals=4)


def activation_norm(evidence: Evidence) -> Float[Tensor, " sample"]:
    """Norm of the U-Net's middle activation."""
    return evidence.activations


def caption_rarity(evidence: Evidence) -> Float[Tensor, " sample"]:
    """Mean −log frequency of the instruction's words among all words of the samples; 0 for a blank one."""
    words = [text.split() for text in evidence.samples.instructions]
    count = Counter(word for text in words for word in text)
    rarity = {word: -np.log(c / count.total()) for word, c in count.items()}
    return torch.tensor([float(np.mean([rarity[w] for w in text])) if text else 0.0 for text in words])


def source_distance(evidence: Evidence) -> Float[Tensor, " sample"]:
    """RMS distance of the target latent to the source's, without any model's help: an edit is near its source."""
    return (evidence.target - evidence.source).square().mean((1, 2, 3)).sqrt().cpu()


def low_loss(evidence: Evidence) -> Float[Tensor, " sample"]:
    """Minus the training loss at the same noise levels: a backdoor is learnt better than a true edit (Li et al. 2021,
    arXiv 2110.11571)."""
    return evidence.values[:, BOTH]


Score = Callable[[Evidence], Float[Tensor, " sample"]]


BASELINES: dict[str, Score] = {
    "duplication": duplication,
    "duplication_10": lambda evidence: duplication(evidence, 10),
    "source_distance": source_distance,
    "activation_norm": activation_norm,
    "caption_rarity": caption_rarity,
    "low_loss": low_loss,
}


SCORES: dict[str, Score] = {
    score.__name__: score
    for score in (
        phi_text,
        phi_image,
        imbalance,
        redundancy,
        text_alone,
        word_ratio,
        word_change,
        patch_ratio,
        patch_change,
    )
} | BASELINES
