"""What the published models cost at their full size: time, samples/s, memory, and the share of the roofline reached.

    python -m benchmarks.full_size --device cuda --llada ../LLaDA     # random weights, nothing is downloaded
    python -m benchmarks.full_size --size toy                         # the same calls on tiny models

LLaDA-V 8 B in bfloat16: decoding a step a token, Fisher–Jacobian saliency, DiSP's whole step (saliency, masking,
answering, a fine-tuning step), a LoRA fine-tuning step. InstructPix2Pix at 512²: sampling and a training step. The
roofline is the larger of FLOP, as torch counts them in one call, over the measured rate of matrix products, and of the
bytes of weights that must be read over the measured copy bandwidth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from statistics import median

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.decoders import Peer, loaded
from benchmarks.harness import milliseconds, options, peak_mib, write
from lib.models.adapters import trainable
from lib.models.decoding import decode
from lib.models.editor import edit, edit_loss, load_editor, prompt_embeds
from lib.models.llada import IMAGE
from lib.models.llada_v import LladaVConfig, LladaVModel
from lib.models.mdlm import masked_diffusion_loss
from lib.models.new_editor import assemble
from lib.runtime.devices import recomputed
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import mask_top
from lib.settings.paths import CHECKPOINTS
from lib.settings.profile import Sampling
from lib.tasks.questions import hide

Task = tuple[str, int, float, Callable[[], object]]  # name, batch, bytes of weights read, and what does it
PROBES, RATIO, STEPS = 4, 0.1, 20
LENGTHS = {"full": (64, 128), "toy": (4, 8)}
BATCH = {"full": 8, "toy": 2}
TOY = {
    "vision": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"image_size": 28, "patch_size": 14},
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mask_id": 509,
    "eos_id": 510,
    "pad_id": 511,
    "forbidden": (),
}


def rows(chosen: argparse.Namespace) -> list[dict]:
    """One row a task: `seconds` (median), `samples_s`, `roofline` (its share of the time), on a GPU `mib`."""
    rate, bandwidth = measured_peaks(chosen)
    made = []
    for task, batch, read, way in chain(language(chosen), editor(chosen)):
        with FlopCounterMode(display=False) as counter:
            way()
        flop = counter.get_total_flops()
        seconds = median(milliseconds(way, chosen.device) for _ in range(chosen.rounds)) / 1e3
        row = {"task": task, "batch": batch, "seconds": seconds, "samples_s": batch / seconds}
        row["roofline"] = max(flop / rate, read / bandwidth) / seconds
        if chosen.device == "cuda":
            row["mib"] = peak_mib(way) + torch.cuda.memory_allocated() / 2**20
        made.append(row | {"size": chosen.size, "date": f"{datetime.now(UTC):%Y-%m-%d}"})
    return made


def measured_peaks(chosen: argparse.Namespace) -> tuple[float, float]:
    """FLOP/s of a bfloat16 matrix product and bytes/s of a copy, read and written."""
    side = 8192 if chosen.size == "full" else 256
    a, b = (torch.randn(side, side, device=chosen.device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    product = median(milliseconds(lambda: torch.mm(a, b, out=out), chosen.device, 10) for _ in range(5))
    copy = median(milliseconds(lambda: out.copy_(a), chosen.device, 10) for _ in range(5))
    return 2 * side**3 / product * 1e3, 2 * 2 * side**2 / copy * 1e3


@torch.no_grad()
def llada_v(size: str, device: str, **changes: object) -> LladaVModel:
    """LLaDA-V with random weights in bfloat16; `changes` of its config."""
    config = LladaVConfig(response_length=LENGTHS[size][-1], **({} if size == "full" else TOY) | changes)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LladaVModel(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def language(chosen: argparse.Namespace) -> Iterator[Task]:
    """Tasks of LLaDA-V."""
    size, device, batch = chosen.size, chosen.device, BATCH[chosen.size]
    model = llada_v(size, device)
    config = model.config
    draw = torch.Generator().manual_seed(0)
    side = config.vision["image_size"]
    with torch.no_grad():
        vision = model.vision_tokens(torch.rand(batch, 3, side, side, generator=draw).to(device))
    prompt = torch.randint(4, config.vocab_size // 2, (batch, config.prompt_length // 4), generator=draw).to(device)
    prompt[:, 0] = IMAGE
    weights = 2.0 * sum(p.numel() for p in (*model.model.layers.parameters(), *model.lm_head.parameters()))

    def answers(seen: Tensor, length: int) -> Tensor:
        blank = torch.full((batch, length), config.mask_id, device=device)
        sizes = {"steps": length, "block_length": length, "mask_id": config.mask_id}
        return decode(model.response_logits(seen, prompt), blank, blank == config.mask_id, **sizes).tokens

    peer = loaded(chosen.llada)
    for length in LENGTHS[size]:
        yield f"LLaDA-V, decoding {length} tokens", batch, weights * length, lambda n=length: answers(vision, n)
        if peer:
            sizes = {"steps": length, "block_length": length, "mask_id": config.mask_id, "gen_length": length}
            name = f"LLaDA-V, decoding {length} tokens, LLaDA's loop"
            own = Peer(model, vision, prompt)
            yield name, batch, weights * length, lambda own=own, s=sizes: peer.generate(own, prompt[:, :0], **s)

    last = LENGTHS[size][-1]

    def scores() -> Tensor:
        return fisher_jacobian(model, vision, prompt, probes=PROBES)

    yield f"LLaDA-V, saliency, {PROBES} probes", batch, weights * 3, scores

    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    inject_adapter_in_model(lora, model)
    trained = [p for name, p in model.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(trained, 1e-4)
    response = torch.randint(4, config.vocab_size // 2, (batch, last), generator=draw).to(device)

    def learn(responses: Tensor) -> None:
        with recomputed(model):
            masked_diffusion_loss(model, vision, prompt, responses, torch.Generator().manual_seed(1)).backward()
        optimizer.step()
        optimizer.zero_grad()

    yield "LLaDA-V, LoRA fine-tuning step", batch, weights * 3, lambda: learn(response)

    def purify() -> None:
        hidden = hide(vision, mask_top(scores(), RATIO), model.mask_embedding)
        learn(answers(hidden, last))

    yield "LLaDA-V, DiSP's whole step", batch, weights * (3 + last + 3), purify


def editor(chosen: argparse.Namespace) -> Iterator[Task]:
    """Tasks of InstructPix2Pix."""
    batch, device, draw = BATCH[chosen.size] // 2, chosen.device, torch.Generator().manual_seed(0)
    pipe = instruct_pix2pix(device) if chosen.size == "full" else load_editor(str(CHECKPOINTS / "editor"), device)
    side = 512 if chosen.size == "full" else 64
    images, texts = torch.rand(batch, 3, side, side, generator=draw).to(device), ["make the skin dark"] * batch
    steps = STEPS if chosen.size == "full" else 2
    sampling = Sampling(steps=steps, text_guidance=7.5, image_guidance=1.5, batch=batch)
    read = 4.0 * sum(p.numel() for p in pipe.unet.parameters())
    name = f"InstructPix2Pix at {side}²"
    yield f"{name}, sampling {steps} steps", batch, read * steps, lambda: edit(pipe, images, texts, sampling, 0)

    unet, text, empty = trainable(pipe.unet), prompt_embeds(pipe, texts), prompt_embeds(pipe, [""])
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-5)
    cells = unet.config.sample_size
    latents = torch.randn(2, batch, 4, cells, cells, generator=draw)

    def learn() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = edit_loss(pipe, *latents, text, empty, torch.Generator().manual_seed(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    yield f"{name}, training step", batch, read * 3, learn


def instruct_pix2pix(device: str):
    """A pipeline in the shape of `timbrooks/instruct-pix2pix` with random weights."""
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, in_channels=8, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        encoder = CLIPTextModel(text)
    words = CLIPTokenizer.from_pretrained(CHECKPOINTS / "clip", model_max_length=77)
    parts: list[nn.Module] = [vae.eval(), encoder.eval(), unet.eval()]
    for part in parts:
        part.requires_grad_(False)
    return assemble(vae, encoder, words, unet).to(device)

if __name__ == "__main__":
    parser = options()
    parser.add_argument("--size", default="full", choices=list(LENGTHS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    write(f"{arguments.size}_size", rows(arguments), arguments)
