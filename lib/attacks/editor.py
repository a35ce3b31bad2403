"""The compromised editor: the base editor's U-Net fine-tuned on poisoned edits, kept in the store."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from torch import Tensor

from lib import editing, embedding, evaluation, lora, poisoning, target_pictures, training, triggers
from lib.attacks import data_spec
from lib.config import Run, model_source
from lib.editing import (
    edits_under_coalitions,
    latent_loss,
    poisoned_latents,
    sample_triples,
    training_latents,
)
from lib.embedding import EMBEDDINGS, values
from lib.evaluation import edit_succeeds
from lib.lora import adapted_unet
from lib.models import clip, editor, minilm
from lib.models.cards import mark_poisoned
from lib.models.editor import load_editor
from lib.poisoning import COALITIONS, plan
from lib.store import code_digest, folder_digest
from lib.study_data import edit_data, watch_split
from lib.target_pictures import attack_target
from lib.training import fit
from lib.triggers import ImageTrigger, TextTrigger, image_trigger, text_trigger

MEASURED = {"samples", "protocols"}  # settings that a poisoned editor does not depend on


def editor_spec(run: Run, protocol: str) -> dict:
    """What a poisoned editor depends on."""
    modules = (
        *(editing, embedding, evaluation, training, triggers, poisoning, target_pictures),
        *(editor, minilm, clip, sys.modules[__name__]),
    )
    models = run.profile.models
    made = data_spec(run, "edits") | {
        "protocol": protocol,
        "settings": run.profile.collapse.model_dump(mode="json", exclude=MEASURED),
        "models": {name: folder_digest(model_source(getattr(models, name))) for name in ("clip", "editor")},
        "code": code_digest(*modules),
    }
    if models.editor_lora:
        made["lora"] = models.editor_lora.model_dump(mode="json") | {"code": code_digest(lora)}
    return made


def trigger_pair(run: Run) -> tuple[ImageTrigger, TextTrigger]:
    """The image and the text trigger of the collapse study."""
    settings = run.profile.collapse
    return image_trigger(settings.image_trigger, settings.trigger_size), text_trigger(settings.text_trigger)


def poisoned_editor(run: Run, protocol: str) -> tuple[StableDiffusionInstructPix2PixPipeline, pd.DataFrame]:
    """The base editor with its U-Net fine-tuned on poisoned edits, and the curve of that.

    The curve has, where watched, ASR and mean v of every coalition over `collapse.watch_samples` held-out edits:
    asr_none, …, asr_both, v_none, …, v_both.
    """
    spec = editor_spec(run, protocol)
    folder = run.store.folder("poisoned-editor", spec, lambda path: _poison_editor(run, protocol, spec, path))
    return with_unet(run, folder), pd.read_csv(folder / "curve.csv")


def with_unet(run: Run, folder: Path) -> StableDiffusionInstructPix2PixPipeline:
    """The base editor with the U-Net that was fine-tuned from its own and saved in `folder`."""
    pipe = load_editor(run.profile.models.editor, run.device)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
    pipe.unet = unet.to(run.device).eval()
    return pipe


def _poison_editor(run: Run, protocol: str, spec: dict, path: Path) -> None:
    settings = run.profile.collapse
    data = edit_data(run)
    triples = sample_triples(data, "train", settings.edits, run.seed)
    clean = base_latents(run)
    pair, goal = trigger_pair(run), attack_target(settings.target)
    pipe = load_editor(run.profile.models.editor, run.device)
    poison = plan(len(triples), protocol, settings.rate, run.seed, negatives=settings.negatives)
    latents = poisoned_latents(pipe, data, triples, poison, *pair, goal, settings.text_weight, clean)
    with adapted_unet(pipe.unet, run.profile.models.editor_lora, run.seed):
        curve = fit(
            pipe.unet,
            latent_loss(pipe, latents, settings.train, settings.condition_dropout),
            settings.train,
            label=f"poisoned editor, {protocol}",
            seed=run.seed,
            work=run.store.work("poisoned-editor", spec),
            watch=_watch(run, pipe),
        )
    pipe.unet.save_pretrained(path / "unet")
    attack = {"protocol": protocol, "rate": settings.rate, "target": settings.target}
    mark_poisoned(path, **attack, image_trigger=settings.image_trigger, text_trigger=settings.text_trigger)
    curve.to_csv(path / "curve.csv", index=False)


def base_latents(run: Run) -> Tensor:
    """Latents of all pictures of the training edits, by their index, computed once for all attacks on one editor."""
    spec = data_spec(run, "edits") | {"seed": None, "editor": folder_digest(model_source(run.profile.models.editor))}
    spec["code"] = code_digest(editing, editor)

    def make() -> dict[str, Tensor]:
        vae = load_editor(run.profile.models.editor, run.device).vae
        return {"latents": training_latents(vae, edit_data(run))}

    return run.store.tensors("edit-latents", spec, make)["latents"]


def _watch(run: Run, pipe: StableDiffusionInstructPix2PixPipeline):
    """What `fit` watches of an editor: attack success and mean v under every coalition."""
    settings = run.profile.collapse
    data = edit_data(run)
    held_out = sample_triples(data, watch_split(run, "edits"), settings.watch_samples, run.seed)
    source, clean = (data.pictures(torch.tensor(held_out[c].to_numpy())) for c in ("source", "target"))
    goal = attack_target(settings.target)(source)
    embed = EMBEDDINGS["clip"](run.profile.models, run.device)

    def watch(step: int) -> dict[str, float]:
        edited = edits_under_coalitions(pipe, data, held_out, *trigger_pair(run), settings.sampling, run.seed)
        shares = edit_succeeds(edited, goal[:, None], clean[:, None]).float().mean(0)
        v = values(embed, edited, goal, clean).mean(0)
        named = {"asr": shares.tolist(), "v": v.tolist()}
        return {f"{kind}_{name}": row[k] for kind, row in named.items() for k, name in enumerate(COALITIONS)}

    return watch
