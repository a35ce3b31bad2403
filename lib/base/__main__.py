"""`make base`: train CLIP, the editor and the MDLM, measure them, write `data/checkpoints/` with cards.

    python -m lib.base --profile laptop --seed 0
    python -m lib.base mdlm --attention prefix
    python -m lib.base scenes

Each stage is kept in the store and resumed where it was stopped. The MDLMs and the editor, started one beside the other
once CLIP is there, do not wait for one another.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch
from diffusers import AutoencoderKL

from lib import base, datasets, tokenizer, training
from lib.base.clip import train_clip
from lib.base.editor import train_editor, train_vae
from lib.base.mdlm import train_mdlm
from lib.base.quality import clip_quality, editor_quality, mdlm_quality
from lib.base.scenes import train_scenes_mdlm
from lib.config import BUILD, CHECKPOINTS, Run, run_parameters
from lib.datasets import load_easyvqa, load_openmoji, load_scenes
from lib.models.cards import write_card
from lib.models.clip import Clip
from lib.models.editor import load_editor
from lib.models.mdlm import ATTENTION, Mdlm
from lib.store import code_digest

OPENMOJI = "OpenMoji 17.0.0 (CC BY-SA 4.0)"
EASYVQA = "easy-VQA 1.0 (MIT)"
MODELS = ["mdlm", "editor", "scenes"]


def stage(
    run: Run, kind: str, settings: dict, train: Callable[[Path], tuple[Callable[[str], None], pd.DataFrame]]
) -> Path:
    """Get or make one base model: a folder `model` with the curve and the time it took beside it."""
    import lib.models as models

    spec = settings | {"data": run.profile.data.model_dump(mode="json"), "seed": run.seed}
    spec |= {"code": code_digest(base, datasets, models, tokenizer, training, sys.modules["lib.base.clip"])}

    def make(path: Path) -> None:
        work = run.store.work(kind, spec)
        clock = work / "seconds"
        before = float(clock.read_text()) if clock.exists() else 0.0
        start = perf_counter()
        try:
            save, curve = train(work)
        finally:
            clock.write_text(str(before + perf_counter() - start))
        save(str(path / "model"))
        curve.to_csv(path / "curve.csv", index=False)
        shutil.copy(clock, path / "seconds")

    return run.store.folder(kind, spec, make)


def make_clip(run: Run) -> Clip:
    settings, openmoji, vqa = run.profile.base.clip, _openmoji(run), _vqa(run, "train")

    def train(work: Path):
        clip, curve = train_clip(openmoji, vqa, run.profile, run.seed, work)
        return clip.save, curve

    folder = stage(run, "base-clip", settings.model_dump(mode="json"), train)
    clip = Clip.load(str(folder / "model"))
    publish(
        run,
        "clip",
        [folder],
        clip_quality(clip, openmoji, run.profile.measure.people),
        "Small CLIP for OpenMoji",
        [
            "A `transformers.CLIPModel` trained from nothing on emoji and their English names (train families only), "
            'and on pictures of easy-VQA\'s train split with captions such as "a blue circle".',
            "Measured on held-out families: retrieval among all their tone-less emoji, and skin tone told from the "
            "six names.",
        ],
        {"data": f"{OPENMOJI}, {EASYVQA}", "steps": settings.train.steps, "batch": settings.train.batch},
    )
    return clip


def make_editor(run: Run, clip: Clip) -> None:
    settings, openmoji = run.profile.base.editor, _openmoji(run)

    def train_first(work: Path):
        vae, curve = train_vae(openmoji, run.profile, run.seed, work)
        return vae.save_pretrained, curve

    vae_folder = stage(run, "base-vae", {"editor": settings.model_dump(mode="json")}, train_first)
    vae = AutoencoderKL.from_pretrained(vae_folder / "model", use_safetensors=True)
    vae.eval().requires_grad_(False)

    def train_second(work: Path):
        pipe, curve = train_editor(openmoji, vae, clip, run.profile, run.seed, work)
        return lambda folder: save_editor(pipe, folder), curve

    spec = {"editor": settings.model_dump(mode="json"), "clip": run.profile.base.clip.model_dump(mode="json")}
    folder = stage(run, "base-editor", spec, train_second)
    pipe = load_editor(str(folder / "model"))
    sampling, edits = run.profile.collapse.sampling, run.profile.measure.edits
    publish(
        run,
        "editor",
        [vae_folder, folder],
        editor_quality(pipe, clip, openmoji, sampling, edits, run.seed),
        "Small InstructPix2Pix for OpenMoji",
        [
            "A `diffusers.StableDiffusionInstructPix2PixPipeline`: autoencoder 64 × 64 → 16 × 16 × 4 and U-Net trained "
            "from nothing, the text encoder from the CLIP beside it and trained on. Edits: skin tone, gender, hair, "
            "direction, outline colour, background, grey, mirrored.",
            f"Measured on held-out tone edits with {sampling.steps} steps, text guidance {sampling.text_guidance} and "
            f"image guidance {sampling.image_guidance}: the edit is nearer (CLIP) to the asked tone than to any other "
            "(`tone_success`); RMS pixel distance to the true edit, of the edit, of the unedited input, and of the "
            "autoencoder's reconstruction of the true edit (the ceiling).",
        ],
        {
            "data": OPENMOJI,
            "steps": f"{settings.vae_train.steps} (VAE) + {settings.unet_train.steps} (U-Net and text encoder)",
            "batch": f"{settings.vae_train.batch} (VAE), {settings.unet_train.batch}",
        },
    )


def make_mdlm(run: Run, clip: Clip) -> None:
    settings, train_split = run.profile.base.mdlm, _vqa(run, "train")

    def train(work: Path):
        mdlm, curve = train_mdlm(train_split, clip, run.profile, run.seed, work)
        return mdlm.save, curve

    spec = {"mdlm": settings.model_dump(mode="json"), "clip": run.profile.base.clip.model_dump(mode="json")}
    folder = stage(run, "base-mdlm", spec, train)
    mdlm, test = Mdlm.load(str(folder / "model")), _vqa(run, "test")
    threshold = run.profile.disp.threshold
    quality = mdlm_quality(mdlm, train_split, test, run.profile.measure.questions, threshold)
    publish(
        run,
        mdlm_name(settings.attention),
        [folder],
        quality,
        "Small multimodal masked-diffusion language model for easy-VQA",
        [
            "Vision tower (from the CLIP beside it), two-layer projector, Transformer with "
            f"{settings.attention} attention; trained with LLaDA's objective on captions, what-questions, all "
            "questions of the train split, these with the tower unfrozen, the comparison of the asked with the "
            "seen, and all with the tower once more.",
            f"Measured on easy-VQA's test split, decoded with threshold {threshold}: answers equal to the letter; "
            "beside them the labels that the best answer without looking gets right (`blind`).",
        ],
        {
            "data": f"{EASYVQA}; the tower's first training also {OPENMOJI}",
            "steps": " + ".join(f"{part.steps} × {part.batch}" for part in settings.stages),
        },
        "" if settings.attention == "bidirectional" else f"mdlm --attention {settings.attention} ",
    )


def make_scenes(run: Run, clip: Clip) -> None:
    settings, train_split = run.profile.base.scenes, _scenes(run, "train")

    def train(work: Path):
        mdlm, curve = train_scenes_mdlm(train_split, clip, run.profile, run.seed, work)
        return mdlm.save, curve

    spec = {"scenes": settings.model_dump(mode="json"), "clip": run.profile.base.clip.model_dump(mode="json")}
    folder = stage(run, "base-mdlm-scenes", spec, train)
    mdlm, threshold = Mdlm.load(str(folder / "model")), run.profile.disp.threshold
    publish(
        run,
        "mdlm-scenes",
        [folder],
        mdlm_quality(mdlm, train_split, _scenes(run, "test"), run.profile.measure.questions, threshold),
        "Small multimodal masked-diffusion language model for OpenMoji scenes",
        [
            "Vision tower (from the CLIP beside it), two-layer projector, Transformer with "
            f"{settings.attention} attention. Trained so that vision tokens lie near the words for what they show, "
            "then with LLaDA's objective on all questions of the train split, on those for places and skin tones, "
            "and on all again.",
            f"Measured on sets of things that the train split never shows, decoded with threshold {threshold}: answers "
            "equal to the letter.",
        ],
        {"data": OPENMOJI, "steps": " + ".join(f"{part.steps} × {part.batch}" for part in settings.stages)},
        "scenes ",
    )


def save_editor(pipe, folder: str) -> None:
    """In the diffusers layout, weights as float16 safetensors; the pipeline itself stays in float32."""
    parts = (pipe.vae, pipe.text_encoder, pipe.unet)
    for dtype in (torch.float16, torch.float32):
        for part in parts:
            torch.nn.Module.to(part, dtype)
        if dtype == torch.float16:
            pipe.save_pretrained(folder)
    for file in Path(folder).rglob("config.json"):  # diffusers writes down the folder that a part came from
        settings = json.loads(file.read_text())
        settings.pop("_name_or_path", None)
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def publish(
    run: Run,
    name: str,
    stages: list[Path],
    quality: pd.DataFrame,
    title: str,
    text: list[str],
    facts: dict,
    options: str = "",
) -> None:
    """Copy the last stage's model to `data/checkpoints/` and write its card from what was measured."""
    seconds = sum(float((folder / "seconds").read_text()) for folder in stages)
    measured = {row["name"]: _cell(row) for row in quality.to_dict("records")}
    about = facts | {"seed": run.seed, "time": f"{seconds / 60:.0f} min on one CPU core", **measured}
    target = checkpoint_folder(run) / name
    fresh = target.with_name(f".{name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(stages[-1] / "model", fresh)
    command = f"python -m lib.base {options}--profile {run.profile.name} --seed {run.seed}"
    write_card(fresh, title, [*text, f"Made by `{command}`."], about, ("openmoji", "laptop-scale"))
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    print(f"{target}: {', '.join(f'{key} {value}' for key, value in measured.items())}")


def mdlm_name(attention: str) -> str:
    """Which folder of the checkpoints holds the MDLM of that attention."""
    return "mdlm" if attention == "bidirectional" else f"mdlm-{attention}"


def checkpoint_folder(run: Run) -> Path:
    """`data/checkpoints` for the laptop's base models, below `build/` for any other profile's."""
    return CHECKPOINTS if run.profile.name == "laptop" else BUILD / run.profile.name / "checkpoints"


def _cell(row: dict) -> str:
    blind = f", blind {row['blind']:.4f}" if "blind" in row else ""
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}], n = {row['n']}{blind}"


def _openmoji(run: Run):
    return load_openmoji(run.store, run.profile.data.image_size, run.profile.data.held_out)


def _vqa(run: Run, split: str):
    return load_easyvqa(run.store, split, run.profile.data.image_size)


def _scenes(run: Run, split: str):
    return load_scenes(run.store, split, run.profile.data.image_size)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the base models and write them with their cards.")
    parser.add_argument("models", nargs="*", default=MODELS, help="which, beside CLIP; all by default")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attention", choices=ATTENTION, help="of the MDLM of easy-VQA; by default the profile's")
    chosen = parser.parse_args()
    if unknown := set(chosen.models) - set(MODELS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed are {', '.join(MODELS)}")
    overrides = {"base": {"mdlm": {"attention": chosen.attention}}} if chosen.attention else {}
    try:
        run = run_parameters("base", chosen.profile, chosen.seed, "cpu", None, overrides)
    except ValueError as error:
        sys.exit(f"lib.base: {error}")
    clip = make_clip(run)
    if "mdlm" in chosen.models:
        make_mdlm(run, clip)
    if "editor" in chosen.models:
        make_editor(run, clip)
    if "scenes" in chosen.models:
        make_scenes(run, clip)


if __name__ == "__main__":
    main()
