"""Tiny random checkpoints in the layouts of the published editor, CLIP, DINOv2, and photographs in their data's."""

import json
from pathlib import Path

import numpy as np
import photos
import tiny
import tiny_llada_v
import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from transformers import BitImageProcessorPil, CLIPConfig, CLIPModel, CLIPTextModel, Dinov2Config, Dinov2Model

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def clip(folder: Path) -> CLIPModel:
    """As `openai/clip-vit-large-patch14`: pictures of 28 pixels, resized by the shorter edge and cropped."""
    torch.manual_seed(0)
    words = tiny.tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "vocab_size": len(words)}
    text = shape | ids | {"max_position_embeddings": words.model_max_length, "projection_dim": 24}
    vision = shape | {"image_size": 28, "patch_size": 14, "projection_dim": 24}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(28)))
    return model


def dino(folder: Path) -> str:
    """As `facebook/dinov2-large`: 64 pixels resized to 32, 28 of them cropped."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**shape, layerscale_value=0.5)).eval().save_pretrained(folder)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    colours = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    BitImageProcessorPil(**sides, **colours).save_pretrained(folder)
    return str(folder)


def preprocessor(side: int) -> dict:
    return {
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "size": side,
    }


def editor(folder: Path, text: CLIPModel) -> str:
    """As `timbrooks/instruct-pix2pix`: latents an eighth as wide, noise predicted, a tokenizer in two files.

    Its safety checker is named and not there.
    """
    torch.manual_seed(1)
    blocks, downs = (8, 8, 16, 16), ("DownEncoderBlock2D",) * 4
    shape = {"block_out_channels": blocks, "down_block_types": downs, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**shape, latent_channels=4, norm_num_groups=8, sample_size=64)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    encoder = CLIPTextModel(text.config.text_config)
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    parts = {"vae": vae, "unet": unet, "text_encoder": encoder}
    parts["scheduler"] = EulerAncestralDiscreteScheduler(**schedule)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    words = folder / "tokenizer"
    tiny.tokenizer().save_pretrained(words)
    model = json.loads((words / "tokenizer.json").read_text())["model"]
    (words / "tokenizer.json").unlink()
    (words / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (words / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(preprocessor(224)))
    index = {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "_diffusers_version": "0.10.0.dev0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


def save_models(folder: Path) -> dict[str, object]:
    """All of them, as the section `models` of a profile, both learning by adapters."""
    text = clip(folder / "clip")
    return {
        "clip": str(folder / "clip"),
        "editor": editor(folder / "editor", text),
        "mdlm": tiny_llada_v.write(folder / "llada-v"),
        "dino": dino(folder / "dino"),
        "editor_lora": {"rank": 2, "alpha": 4},
    }


def edits(folder: Path, train: int = 12, test: int = 4) -> str:
    """Triples as `lib.studies.celeba_edits` writes them."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        rows = []
        for k in range(count):
            names = {"input_image": f"source/{k}.png", "edited_image": f"edited/{k}.png"}
            for name in names.values():
                (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
                pixels = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((64, 64)).save(folder / part / name)
            kind = ("Smiling", "Young")[k % 2]
            text = f"make them {('smile', 'young')[k % 2]}"
            more = {"edit_prompt": text, "edit": kind, "value": "yes", "family": f"{part} {k}"}
            rows.append(names | more)
        (folder / part / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def instructions(folder: Path, count: int = 40) -> str:
    """LLaVA's instructions about pictures in two folders, answered in a sentence; one is too long for any prompt."""
    draw, samples = np.random.default_rng(1), []
    folder.mkdir(parents=True)
    for k in range(count):
        name = f"{('coco', 'gqa')[k % 2]}/{k}.jpg"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / name)
        animal = ("dog", "bird")[k % 3 == 0]
        turns = ["<image>\nWhat is it?", f"It is a {animal}.", "Why?", "See."]
        samples.append(photos.llava_sample(str(k), name, turns))
    samples.append(photos.llava_sample("long", "coco/0.jpg", ["<image>\n" + "Why? " * 400, "So."]))
    (folder / "llava_instruct_150k.json").write_text(json.dumps(samples))
    return str(folder)
