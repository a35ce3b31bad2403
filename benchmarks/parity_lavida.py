"""Is our LaViDa the authors'? One tiny random checkpoint in both: vision tokens, logits, decoded tokens, loss.

    python -m benchmarks.parity_lavida --lavida ../LaViDa

takes a checkout of jacklishufan/LaViDa and writes `benchmarks/results/parity-lavida.txt`. The names and shapes of the
checkpoint are those of their model. Their code was written for an older transformers; it runs beside ours once the
package's own imports, other vision towers, the resamplers and deepspeed, none of which are needed, are left out, the
configuration is made by their own `__init__`, no weights are tied, and the vision tower is made in place, not loaded.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from benchmarks.parity_llada_v import MASK, TOWER, drawn, far, main, ours, randomize
from lib.models.anyres import views
from lib.models.decoding import generate
from lib.models.lavida import Lavida, complementary_masking_loss, decode_shifted, shifted_quotas
from lib.models.llada import IMAGE
from lib.runtime.seeds import generator

PICTURES = (  # height × width, pooling
    *((size, "bilinear") for size in ((384, 384), (384, 768), (500, 333), (1200, 400), (1000, 1400))),
    *((size, "average") for size in ((768, 768), (500, 333))),
)
CONFIG = {
    "model_type": "llava_llada",
    "d_model": 64,
    "mlp_hidden_size": 96,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 4,
    "vocab_size": 126464,  # their code holds the ids of special tokens fixed
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 500000.0,
    "weight_tying": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 32,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_spatial_pool_mode": "bilinear",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": "[(384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152)]",
}
UNUSED = [f"multimodal_resampler.{name}" for name in ("masked_drop", "spatial_pool", "perceiver", "qformer")]
UNUSED += [f"multimodal_encoder.{name}" for name in ("imagebind", "open_clip_encoder", "hf_vision", "mlcd_encoder")]
UNUSED += ["multimodal_encoder.clip_encoder"]


def authors(checkout: Path):
    """Their model with random weights, their preparation of pictures, their quotas."""
    for name in ("llava", "llava.model", "llava.model.language_model"):
        package = ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    for name in UNUSED:
        module = ModuleType(f"llava.model.{name}")
        module.__getattr__ = lambda attribute: None
        sys.modules[module.__name__] = module
    deepspeed = sys.modules["deepspeed"] = ModuleType("deepspeed")
    deepspeed.checkpointing = SimpleNamespace(checkpoint=lambda layer, *given, **named: layer(*given, **named))
    from llava.mm_utils import process_images
    from llava.model.language_model.llada.generate import get_num_transfer_tokens_sch
    from llava.model.language_model.llada.modeling_llada import LLaDAConfig
    from llava.model.language_model.llava_llada import LlavaLladaConfig, LlavaLladaForMaskedDiffusion
    from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionConfig, SigLipVisionModel

    LlavaLladaConfig.__init__ = LLaDAConfig.__init__
    LlavaLladaForMaskedDiffusion._tied_weights_keys = {}
    LlavaLladaForMaskedDiffusion.tie_weights = lambda self, *args, **kwargs: None
    tower = SigLipVisionModel(SigLipVisionConfig(num_hidden_layers=3, **TOWER))
    SigLipVisionModel.from_pretrained = staticmethod(lambda name, device_map: tower)
    config = LlavaLladaConfig(mm_vision_tower="siglip", **CONFIG)
    model = LlavaLladaForMaskedDiffusion(config).float().eval()
    randomize(model)
    return model, process_images, get_num_transfer_tokens_sch


@torch.no_grad()
def compare(checkout: Path):
    """Lines of the report, one at a time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs, process, quotas = authors(checkout)
        own, count = ours(theirs, folder, CONFIG, Lavida)
    yield f"{count} weights under the authors' names, all loaded; {own.num_parameters():,} parameters, float32"
    draw, length = generator(0, "inputs"), 24
    own.config.response_length = length
    for (height, width), pooling in PICTURES:
        own.config.picture = [height, width]
        own.config.mm_spatial_pool_mode = theirs.config.mm_spatial_pool_mode = pooling
        image, picture = drawn(height, width, draw)
        seen = views(picture, 384, "anyres", own.config.layout(height, width).tiles) * 2 - 1
        pixels = process([image], theirs.get_vision_tower().image_processor, theirs.config)
        ids = torch.randint(126000, (1, 30), generator=draw)
        ids[0, 9] = IMAGE
        response = torch.randint(126000, (1, length), generator=draw)
        noisy = response.clone()
        noisy[0, ::3] = MASK
        embedded = theirs.prepare_inputs_labels_for_multimodal(
            ids, None, None, None, None, [seen[0]], image_sizes=[(width, height)]
        )[4]
        answer = theirs.model.embed_tokens(noisy)
        known = theirs.model(None, input_embeddings=embedded, use_cache=True).attn_key_values
        after = theirs.model(None, input_embeddings=answer, past_key_values=known).logits
        both = theirs.model(None, input_embeddings=torch.cat([embedded, answer], 1)).logits[:, -length:]
        vision = own.vision_tokens(picture)
        padded = torch.cat([ids, torch.full((1, 7), own.config.pad_id)], 1)
        made, behind = own.logits(vision, ids, noisy), own.logits(vision, padded, noisy)
        own.config.attention = "bidirectional"
        full = own.logits(vision, ids, noisy)
        own.config.attention = "prefix"
        yield f"\npicture of {height} x {width}, {pooling}: {seen.shape[1]} views, {vision.shape[1]} vision tokens"
        yield f"  pixels after resizing, in 1/255:     {float((seen - pixels[0]).abs().max()) * 127.5:.2f}"
        yield f"  vision tokens in the prompt:         {far(vision, embedded[:, 9:-20])}"
        yield f"  logits, prefix attention:            {far(made, after)}"
        yield f"  logits, the prompt padded by 7:      {far(behind, after)}"
        yield f"  logits, bidirectional:               {far(full, both)}"

    yield f"\nquotas of every schedule the same:     {agree(quotas)}"
    few = vision[:, :20]
    embedded = torch.cat([embedded[:, :9], few, embedded[:, 9 + vision.shape[1] :]], 1)
    yield f"\n{length} tokens decoded after 20 of those vision tokens, prefix kept"
    for ratio, block, shift in ((1.0, 24, None), (1.0, 8, None), (0.5, 24, 1 / 3), (0.5, 24, 3), (0.5, 12, 1 / 3)):
        steps = int(length // (length // block) * ratio) * (length // block)
        wanted = reference(theirs, embedded, length, block, ratio, shift)
        settings = {"steps": steps, "block_length": block, "mask_id": MASK}
        blank, logits = torch.full((1, length), MASK), own.response_logits(few, ids)
        if shift is None:
            result = generate(logits, blank, blank == MASK, **settings)
        else:
            result = decode_shifted(logits, blank, shift=shift, **settings).tokens
        named = "even" if shift is None else f"shift {shift:.2f}"
        same = int((result == wanted).sum())
        yield f"  {steps:2} steps, blocks of {block:2}, {named:10}:   {same} tokens the same"
    yield f"\nloss of complementary masks, the same masks in both: {losses(theirs, own, few, ids, response, embedded)}"


def agree(quotas) -> str:
    """Over blocks of 1 to 64 tokens, 1 to 70 steps, five shifts; where rounding loses a token, theirs stops."""
    tried = same = stopped = 0
    for positions in (1, 2, 7, 24, 32, 64):
        mask = torch.ones(1, positions, dtype=torch.bool)
        for steps in (1, 2, 5, 16, 32, 64, 70):
            for shift in (0.1, 1 / 3, 1.0, 3.0, 10.0):
                tried, made = tried + 1, shifted_quotas(positions, steps, shift)
                try:
                    wanted = quotas(mask, steps, schedule="shift", schedule_kwargs={"shift": shift})[0].tolist()
                    same += wanted == made
                except AssertionError:
                    stopped += 1
    return f"{same} of {tried}, theirs stops in {stopped} more"


def reference(theirs, embedded, length: int, block: int, ratio: float, shift: float | None) -> torch.Tensor:
    """What their own loop decodes at temperature 0."""
    from llava.model.language_model.llada.generate import generate as decoded

    schedule = {} if shift is None else {"schedule": "shift", "schedule_kwargs": {"shift": shift}}
    sizes = {"max_new_tokens": length, "block_length": block, "step_ratio": ratio}
    return decoded(theirs.model, inputs_embeds=embedded, prefix_lm=True, **sizes, **schedule)


def losses(theirs, own, vision, ids, response, embedded) -> str:
    """Theirs on the masks that ours drew, attention bidirectional as in their training: their prefix needs CUDA."""
    own.config.attention = "bidirectional"
    made = complementary_masking_loss(own, vision, ids, response, generator(3))
    own.config.attention = "prefix"
    shown, draw = [], generator(3)
    t = 1e-3 + (1 - 1e-3) * torch.rand(1, 1, generator=draw)
    noise = torch.rand(response.shape, generator=draw)
    first = noise <= torch.maximum(t, noise.amin(1, keepdim=True))
    for masked in (first, ~first):
        answer = theirs.model.embed_tokens(torch.where(masked, MASK, response))
        shown.append((torch.cat([embedded, answer], 1), response.masked_fill(~masked, -100)))
    inputs = torch.cat([states for states, _ in shown])
    before = torch.full((2, embedded.shape[1]), -100)
    labels = torch.cat([before, torch.cat([wanted for _, wanted in shown])], 1)
    from llava.model.language_model.llada.modeling_llada import LLaDAModelLM

    expected = LLaDAModelLM.forward(theirs, inputs_embeds=inputs, labels=labels, use_cache=False, return_dict=True).loss
    return f"{float(made):.6f}, theirs {float(expected):.6f}"


if __name__ == "__main__":
    main(__doc__, "lavida", {"lavida": "jacklishufan/LaViDa"}, compare)
