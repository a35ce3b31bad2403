"""An editor from nothing: autoencoder, U-Net, and the pipeline that they make with a text encoder."""

from __future__ import annotations

from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import BertModel, CLIPTextModel, PreTrainedTokenizerBase


def build_vae(*, channels: tuple[int, ...], latent_channels: int, image_size: int) -> AutoencoderKL:
    """An autoencoder with one down-sampling fewer than it has `channels`, its blocks' widths."""
    blocks = len(channels)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=image_size,
    )


def build_unet(
    *, channels: tuple[int, ...], latent_channels: int, latent_size: int, text_width: int
) -> UNet2DConditionModel:
    """A U-Net over a noisy latent and the source's that attends to the text at every resolution but the first.

    `channels` are the widths at its resolutions.
    """
    deeper = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=2 * latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def assemble(
    vae: AutoencoderKL,
    text_encoder: BertModel | CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
    unet: UNet2DConditionModel,
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
