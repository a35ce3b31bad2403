"""The instruction editor: a real InstructPix2Pix pipeline of diffusers, tiny or published.

Brooks, Holynski, Efros 2023. The U-Net sees the noisy latent beside the source's latent.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from lib.config import generator, pretrained
from lib.precision import autocast
from lib.processes import count, share
from lib.profile import EditorBase, Sampling

PIXELS = 256 * 64**2


def load_editor(name: str, device: torch.device | str = "cpu") -> StableDiffusionInstructPix2PixPipeline:
    """From a local folder or the hub, safetensors only, in float32."""
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        **pretrained(name),
        dtype=torch.float32,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.eval().requires_grad_(False)
    return pipe.to(device)


def build_vae(base: EditorBase, image_size: int) -> AutoencoderKL:
    """An autoencoder with one down-sampling fewer than it has channel widths, four latent channels."""
    blocks = len(base.vae_channels)
    return AutoencoderKL(
        block_out_channels=base.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=image_size,
    )


def build_unet(base: EditorBase, latent_size: int, text_width: int) -> UNet2DConditionModel:
    """A U-Net with 8 input channels that attends to the text at every resolution but the first."""
    deeper = len(base.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=8,
        out_channels=4,
        block_out_channels=base.unet_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionInstructPix2PixPipeline:
    """The parts as one pipeline; v-prediction with a schedule that ends in pure noise (Lin et al. 2024)."""
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trainable(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net ready to be trained: all parameters.

    On a CPU with plain attention (`lib.models.mdlm.attention`); elsewhere activations are computed again in the
    backward pass, as those of the published U-Net at 512 × 512 pixels fill a GPU's memory at a batch of 32.
    """
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    else:
        unet.enable_gradient_checkpointing()
    return unet.requires_grad_(True)


@torch.no_grad()
def encode(
    vae: AutoencoderKL, images: Float[Tensor, "batch 3 h w"], batch: int | None = None
) -> Float[Tensor, "batch latent lh lw"]:
    """The mode of the latent distribution of pictures in [0, 1], unscaled; `at_once` of them together by default."""
    parts = images.split(batch or at_once(images.shape[-1]))
    return torch.cat([vae.encode(part * 2 - 1).latent_dist.mode() for part in parts])


@torch.no_grad()
def decode(
    vae: AutoencoderKL, latents: Float[Tensor, "batch latent lh lw"], batch: int | None = None
) -> Float[Tensor, "batch 3 h w"]:
    """Pictures in [0, 1] from unscaled latents; `at_once` of them together by default."""
    parts = latents.split(batch or at_once(latents.shape[-1] * 2 ** (len(vae.config.block_out_channels) - 1)))
    return torch.cat([(vae.decode(part).sample / 2 + 0.5).clamp(0, 1) for part in parts])


def at_once(size: int) -> int:
    """How many pictures of `size` × `size` pixels go through the autoencoder together: 256 of 64 pixels, 4 of 512."""
    return max(1, PIXELS // size**2)


def tokenize(pipe: StableDiffusionInstructPix2PixPipeline, texts: list[str]) -> Int[Tensor, "batch length"]:
    """Instructions padded to the text encoder's full length, as the pipeline itself does."""
    length = pipe.tokenizer.model_max_length
    return pipe.tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def edit_loss(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "batch 4 lh lw"],
    target: Float[Tensor, "batch 4 lh lw"],
    tokens: Int[Tensor, "batch length"],
    draw: torch.Generator,
    dropout: float = 0.05,
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """The denoising loss with conditioning dropout: text, picture, and both, each with rate `dropout`.

    Mean over the batch of each sample's `weight` (1 by default) times its squared error.

    `source` and `target` are unscaled latents, `tokens` from `tokenize` (Brooks et al. 2023, section 3.2.1).
    """
    device = pipe.unet.device
    batch = len(source) * count()
    noise = share(torch.randn(batch, *target.shape[1:], generator=draw)).to(device)
    steps = share(torch.randint(pipe.scheduler.config.num_train_timesteps, (batch,), generator=draw)).to(device)
    drop = share(torch.rand(batch, generator=draw)).to(device)
    empty = tokenize(pipe, [""]).to(device)
    tokens = torch.where((drop < 2 * dropout)[:, None], empty, tokens.to(device))
    keep = ((drop < dropout) | (drop >= 3 * dropout))[:, None, None, None]
    latents = target.to(device) * pipe.vae.config.scaling_factor
    noisy, wanted = diffuse(pipe.scheduler, latents, noise, steps)
    text = pipe.text_encoder(tokens)[0]
    guess = pipe.unet(
        torch.cat([noisy, source.to(device) * keep], dim=1), steps, encoder_hidden_states=text
    ).sample
    error = (guess.float() - wanted).square().mean((1, 2, 3))
    return (error if weight is None else error * weight.to(device)).mean()


def diffuse(
    scheduler,
    clean: Float[Tensor, "batch 4 lh lw"],
    noise: Float[Tensor, "batch 4 lh lw"],
    steps: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch 4 lh lw"], Float[Tensor, "batch 4 lh lw"]]:
    """(noisy latents, what the U-Net must predict) by the scheduler's own schedule and prediction type."""
    alpha = scheduler.alphas_cumprod.to(clean)[steps][:, None, None, None]
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    noisy = signal * clean + sigma * noise
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return noisy, signal * noise - sigma * clean
    if kind == "epsilon":
        return noisy, noise
    raise ValueError(f"prediction_type={kind!r} of the scheduler must be 'v_prediction' or 'epsilon'")


@torch.no_grad()
def edit(
    pipe: StableDiffusionInstructPix2PixPipeline,
    images: Float[Tensor, "batch channel h w"],
    instructions: list[str],
    sampling: Sampling,
    seed: int,
    label: str = "edit",
) -> Float[Tensor, "batch 3 height width"]:
    """Sampled edits of pictures in [0, 1], or of their unscaled latents, in half precision.

    Picture k always starts from the noise of (seed, k).
    """
    if len(images) != len(instructions):
        raise ValueError(
            f"instructions: {len(instructions)} given for {len(images)} images, one each is needed"
        )
    edited = []
    for start in tqdm(range(0, len(images), sampling.batch), desc=label, unit="batch", leave=False):
        part = slice(start, start + sampling.batch)
        draws = [generator(seed, "edit", k) for k in range(len(images))[part]]
        with autocast(pipe.unet.device):
            made = pipe(
                instructions[part],
                image=images[part],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.text_guidance,
                image_guidance_scale=sampling.image_guidance,
                generator=draws,
                output_type="pt",
            )
        edited.append(made.images.float())
    return torch.cat(edited) if edited else images
