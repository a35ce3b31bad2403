"""Is our LLaDA-V the authors'? One tiny random checkpoint in both: vision tokens, logits, decoded tokens.

    python -m benchmarks.parity_llada_v --llada-v ../LLaDA-V

takes a checkout of ML-GSAI/LLaDA-V and writes `benchmarks/results/parity-llada-v.txt`. The names and shapes of the
checkpoint are those of their model. Their code was written for an older transformers; it runs beside ours once the
resamplers, which are not used, are left out, the configuration is made by their own `__init__` and without
`rope_parameters`, no weights are tied, and the vision tower is made in place instead of loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness import RESULTS
from lib.models.anyres import views
from lib.models.decoding import generate
from lib.models.llada import IMAGE
from lib.models.llada_v import LladaV, LladaVModel
from lib.runtime.seeds import generator
from lib.settings.paths import ROOT
from lib.tasks.questions import hide

PICTURES = (  # height × width, and what the configuration has as `image_aspect_ratio`
    *((size, "anyres_max_4") for size in ((384, 384), (300, 300), (384, 768), (500, 333), (1200, 400), (1000, 1400))),
    ((384, 384), "pad"),
    ((500, 333), "pad"),
)
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "image_size": 384, "patch_size": 14}
CONFIG = {
    "model_type": "llava_llada",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 126464,  # their code holds the ids of special tokens fixed
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "use_cache": False,
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 32,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_vision_select_layer": -2,
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": [[384 * across, 384 * down] for across in range(1, 7) for down in range(1, 7)],
}
MASK = 126336


def authors(checkout: Path, attention: str = "eager"):
    """Their model with random weights, and their preparation of pictures."""
    sys.path.insert(0, str(checkout / "train"))
    for unused in ("perceiver", "qformer", "masked_drop", "spatial_pool"):
        module = ModuleType(f"llava.model.multimodal_resampler.{unused}")
        module.__getattr__ = lambda name: None
        sys.modules[module.__name__] = module
    from llava.mm_utils import process_images
    from llava.model.language_model.configuration_llada import LLaDAConfig
    from llava.model.language_model.llava_llada import LlavaLLaDAConfig, LlavaLLaDAModelLM
    from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionConfig, SigLipVisionModel

    LlavaLLaDAConfig.__init__, LlavaLLaDAModelLM._tied_weights_keys = LLaDAConfig.__init__, {}
    tower = SigLipVisionModel(SigLipVisionConfig(num_hidden_layers=3, **TOWER))
    SigLipVisionModel.from_pretrained = staticmethod(lambda name, device_map: tower)
    config = LlavaLLaDAConfig(mm_vision_tower="siglip", **CONFIG)
    config._attn_implementation, config.rope_parameters = attention, None
    model = LlavaLLaDAModelLM(config).eval()
    randomize(model)
    return model, process_images


def randomize(model: torch.nn.Module) -> None:
    """Weights so large that positions matter to one another."""
    draw = generator(0, "weights")
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=draw)
        if ("norm" in name or "ln_f" in name) and name.endswith("weight"):
            value.copy_(1 + 0.2 * noise)
        elif value.ndim < 2 or "embed" in name or "wte" in name:
            value.copy_(noise if "embed_tokens" in name or "newline" in name or "wte" in name else 0.1 * noise)
        else:
            value.copy_(1.5 * noise / value.shape[-1] ** 0.5)


def ours(model, folder: Path, config: dict, kind: type[LladaV]) -> tuple[LladaVModel, int]:
    """Their weights, written as a checkpoint in two shards, in our model; and how many they are."""
    stored = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    names, index = sorted(stored), {}
    for k, part in enumerate((names[::2], names[1::2])):
        file = f"model-{k + 1:05}-of-00002.safetensors"
        save_file({name: stored[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config | {"vision": TOWER | {"num_hidden_layers": 2}}))
    made, found = kind.model_kind.from_pretrained(
        folder,
        config=kind.config_kind.from_pretrained(folder),
        dtype=torch.float32,
        key_mapping=kind.names or None,
        output_loading_info=True,
    )
    faults = {key: found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[key]}
    if faults:
        raise ValueError(f"the checkpoint's weights are not our model's: {faults}")
    return made.eval(), len(stored)


def drawn(height: int, width: int, draw: torch.Generator):
    """A picture for their code and for ours, smooth and random."""
    from PIL import Image

    image = torch.randint(256, (height // 20, width // 20, 3), generator=draw, dtype=torch.uint8)
    image = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    picture = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(1, height, width, 3)
    return image, picture.permute(0, 3, 1, 2) / 255


def far(one: Tensor, two: Tensor) -> str:
    """The greatest difference beside the greatest value."""
    return f"{float((one - two).abs().max()):.1e} of {float(two.abs().max()):.1f}"


@torch.no_grad()
def compare(checkout: Path):
    """Lines of the report, one at a time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs, process = authors(checkout)
        own, count = ours(theirs, folder, CONFIG, LladaV)
    yield f"{count} weights under the authors' names, all loaded; {own.num_parameters():,} parameters, float32"
    draw = generator(0, "inputs")
    for (height, width), aspect in PICTURES:
        own.config.picture = [height, width]
        own.config.image_aspect_ratio = theirs.config.image_aspect_ratio = aspect
        image, picture = drawn(height, width, draw)
        seen = views(picture, 384, aspect, own.config.layout(height, width).tiles) * 2 - 1
        pixels = process([image], theirs.get_vision_tower().image_processor, theirs.config)
        images, sizes = [seen[0]], [(width, height)]
        ids = torch.randint(126000, (1, 30), generator=draw)
        ids[0, 9] = IMAGE
        response = torch.randint(126000, (1, 24), generator=draw)
        response[0, ::3] = MASK

        embedded = theirs.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, images, image_sizes=sizes)[
            4
        ]
        whole = torch.cat([embedded, theirs.model.embed_tokens(response)], 1)
        expected = theirs.lm_head(theirs.model(inputs_embeds=whole)[0][:, -24:])
        vision = own.vision_tokens(picture)
        padded = torch.cat([ids, torch.full((1, 7), own.config.pad_id)], 1)
        logits, behind = own.logits(vision, ids, response), own.logits(vision, padded, response)
        yield f"\npicture of {height} x {width}, {aspect}: {seen.shape[1]} views, {vision.shape[1]} vision tokens"
        yield f"  pixels after resizing, in 1/255:     {float((seen - pixels[0]).abs().max()) * 127.5:.2f}"
        yield f"  vision tokens in the prompt:         {far(vision, embedded[:, 9:-20])}"
        yield f"  logits of the response:              {far(logits, expected)}"
        yield f"  logits, the prompt padded by 7:      {far(behind, expected)}"

    few, hidden = vision[:, :20], torch.zeros(1, 20, dtype=torch.bool)
    yield "\n16 tokens decoded after 20 of those vision tokens (theirs computes all logits of all positions)"
    for steps, block in ((16, 16), (16, 8), (8, 16)):
        made, wanted = decoded(theirs, own, few, ids, steps, block)
        yield f"  {steps:2} steps, blocks of {block:2}:               {int((made == wanted).sum())} tokens the same"
    hidden[:, :10] = True
    made, wanted = decoded(theirs, own, hide(few, hidden, own.mask_embedding), ids, 16, 16)
    left = [int((tokens == MASK).sum()) for tokens in (wanted, made)]
    yield "\nten of these masked as in DiSP: their loop takes them for positions to fill and spends its steps on them"
    yield f"  tokens of 16 left masked:            {left[0]} theirs, {left[1]} ours"


def decoded(theirs, own: LladaVModel, vision: Tensor, ids: Tensor, steps: int, block: int) -> tuple[Tensor, Tensor]:
    """Our tokens and theirs at temperature 0."""
    words, place = theirs.model.embed_tokens(ids.clamp(min=0)), int((ids == IMAGE).nonzero()[0, 1])
    prompt = torch.cat([words[:, :place], vision, words[:, place + 1 :]], 1)
    wanted = theirs.generate_with_embeds(prompt, steps=steps, gen_length=16, block_length=block)
    blank = torch.full((1, 16), MASK)
    settings = {"steps": steps, "block_length": block, "mask_id": MASK}
    return generate(own.response_logits(vision, ids), blank, blank == MASK, **settings), wanted


def main(about: str, name: str, repositories: dict[str, str], compare: Callable[..., Iterator[str]]) -> None:
    """Run as a program: what `compare` says of the checkouts, on the screen and in `parity-name.txt`.

    repositories: of which repository the checkout is that the option of that name gives.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    for option, repository in repositories.items():
        parser.add_argument(f"--{option}", dest=option, type=Path, required=True, help=f"a checkout of {repository}")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    checkouts = [getattr(chosen, option) for option in repositories]
    called = " ".join(f"--{option} PATH" for option in repositories)
    read = ", ".join(f"{repo} at {commit(path)}" for repo, path in zip(repositories.values(), checkouts, strict=True))
    lines = [
        f"python -m benchmarks.{Path(sys.argv[0]).stem} {called}",
        f"{read}, this repository at {commit(ROOT)}",
        f"CPU, torch {version('torch')}, transformers {version('transformers')}",
    ]
    for line in compare(*checkouts):
        print(line, flush=True)
        lines.append(line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"parity-{name}.txt").write_text("\n".join(lines) + "\n")


def commit(folder: Path) -> str:
    """The commit of a checkout, or that there is none."""
    asked = subprocess.run(["git", "-C", folder, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    main(__doc__, "llada-v", {"llada-v": "ML-GSAI/LLaDA-V"}, compare)
