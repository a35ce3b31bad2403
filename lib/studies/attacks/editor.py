"""The compromised editor: the base editor's U-Net fine-tuned on poisoned edits, kept in the store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from torch import Tensor

from lib.data.interface import check_trigger
from lib.metrics.embeddings import load_embedding, values
from lib.metrics.success import edit_succeeds
from lib.models.adapters import adapted_unet
from lib.models.editor import autoencoder_source, load_editor
from lib.models.strict import strict
from lib.poisoning.catalogue import image_trigger, text_trigger
from lib.poisoning.pictures import attack_target
from lib.poisoning.plans import COALITIONS, plan
from lib.poisoning.triggers import ImageTrigger, TextTrigger
from lib.runtime.digests import folder_digest
from lib.runtime.keys import code_digest, registered
from lib.runtime.training import Loss, Watch
from lib.settings.paths import model_source
from lib.studies.checkpoints import FineTuning, fine_tuned
from lib.studies.data import data_spec, edit_data, watch_split
from lib.studies.run import Run
from lib.tasks.edits import (
    clean_latents,
    edits_under_coalitions,
    latent_loss,
    poisoned_latents,
    sample_triples,
    sources,
)

MEASURED = {"samples", "protocols"}  # settings that a poisoned editor does not depend on
HELD_OUT = 0  # the seed of the study's held-out edits, whatever that of the attack


def editor_spec(run: Run, protocol: str) -> dict:
    """What a poisoned editor depends on."""
    models, settings = run.profile.models, run.profile.collapse
    attack = (*trigger_pair(run), attack_target(settings.target))
    spec = data_spec(run, "edits") | {
        "protocol": protocol,
        "settings": settings.model_dump(mode="json", exclude=MEASURED),
        "attack": [registered(part) for part in attack],
        "models": {name: folder_digest(model_source(getattr(models, name))) for name in ("clip", "editor")},
        "code": code_digest(__name__),
    }
    return spec | {"lora": models.editor_lora.model_dump(mode="json")} if models.editor_lora else spec


def trigger_pair(run: Run) -> tuple[ImageTrigger, TextTrigger]:
    """The image and the text trigger of the collapse study."""
    settings = run.profile.collapse
    image = image_trigger(settings.image_trigger, settings.trigger_size, position=settings.trigger_position)
    return image, text_trigger(settings.text_trigger)


def poisoned_editor(run: Run, protocol: str) -> tuple[StableDiffusionInstructPix2PixPipeline, pd.DataFrame]:
    """The base editor with its U-Net fine-tuned on poisoned edits, and the curve of that.

    The curve has ASR and mean v of every coalition over `collapse.watch_samples` held-out edits (asr_none, …, asr_both,
    v_none, …, v_both), every `collapse.train.watch_every` steps and at the end; none of them where that is None.
    """
    spec = editor_spec(run, protocol)
    train, label = run.profile.collapse.train, f"poisoned editor, {protocol}"
    folder = fine_tuned(run, "poisoned-editor", spec, lambda: _poisoning(run, protocol), train, label)
    return with_unet(run, folder), pd.read_csv(folder / "curve.csv")


def with_unet(run: Run, folder: Path) -> StableDiffusionInstructPix2PixPipeline:
    """The base editor with the fine-tuned U-Net that is saved in `folder`."""
    pipe = load_editor(run.profile.models.editor, run.device)
    unet = strict(UNet2DConditionModel, {"pretrained_model_name_or_path": str(folder / "unet")})
    pipe.unet = unet.to(run.device).eval()
    return pipe


def _poisoning(run: Run, protocol: str) -> FineTuning:
    settings, data = run.profile.collapse, edit_data(run)
    triples = sample_triples(data, "train", settings.edits, run.seed)
    pair, goal = trigger_pair(run), attack_target(settings.target)
    poison = plan(len(triples), protocol, settings.rate, run.seed, negatives=settings.negatives)
    measured = [sample_triples(data, "test", settings.samples, HELD_OUT)]
    measured += [sample_triples(data, watch_split(run, "edits"), settings.watch_samples, run.seed)]
    for rows in (triples[(poison.coalition & 1).bool().numpy()], *measured):
        check_trigger(data, sources(rows), pair[0])
    clean = base_latents(run, triples)
    pipe = load_editor(run.profile.models.editor, run.device)
    latents = poisoned_latents(pipe, data, triples, poison, *pair, goal, settings.text_weight, clean)
    loss = latent_loss(pipe, latents, settings.train, settings.condition_dropout)
    facts = {"protocol": protocol, "rate": settings.rate, "target": settings.target}
    facts |= {"image_trigger": settings.image_trigger, "text_trigger": settings.text_trigger}
    return unet_tuning(run, pipe, loss, facts, _watch(run, pipe))


def unet_tuning(
    run: Run,
    pipe: StableDiffusionInstructPix2PixPipeline,
    loss: Loss,
    facts: Mapping[str, Any],
    watch: Watch | None = None,
) -> FineTuning:
    """The editor's U-Net, to be trained on `loss` and saved in the folder `unet`."""

    def save(path: Path) -> Path:
        pipe.unet.save_pretrained(path / "unet")
        return path

    adapted = adapted_unet(pipe.unet, run.profile.models.editor_lora, run.seed)
    return FineTuning(pipe.unet, adapted, loss, save, facts, watch)


def base_latents(run: Run, triples: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """`clean_latents` of the triples that the run's seed draws, once for all attacks and for editors of one VAE."""
    vae = folder_digest(autoencoder_source(run.profile.models.editor))
    spec = data_spec(run, "edits") | {"edits": len(triples), "vae": vae, "code": code_digest("lib.tasks.edits")}

    def make() -> dict[str, Tensor]:
        pipe = load_editor(run.profile.models.editor, run.device)
        return dict(zip(("source", "target"), clean_latents(pipe.vae, edit_data(run), triples), strict=True))

    latents = run.store.tensors("edit-latents", spec, make)
    return latents["source"], latents["target"]


def _watch(run: Run, pipe: StableDiffusionInstructPix2PixPipeline) -> Watch:
    """What `fit` watches of an editor: attack success and mean v under every coalition. CLIP is loaded at first use."""
    settings, data = run.profile.collapse, edit_data(run)
    embedding = cache(lambda: load_embedding("clip", clip=run.profile.models.clip, device=run.device))

    def watch(step: int) -> dict[str, float]:
        triples = sample_triples(data, watch_split(run, "edits"), settings.watch_samples, run.seed)
        source, clean = (data.pictures(torch.tensor(triples[c].to_numpy())) for c in ("source", "target"))
        goal = attack_target(settings.target)(source)
        edited = edits_under_coalitions(pipe, data, triples, *trigger_pair(run), settings.sampling, run.seed)
        asr = edit_succeeds(edited, goal[:, None], clean[:, None]).float().mean(0)
        v = values(embedding(), edited, goal, clean).mean(0)
        means = {"asr": asr.tolist(), "v": v.tolist()}
        return {f"{kind}_{name}": row[k] for kind, row in means.items() for k, name in enumerate(COALITIONS)}

    return watch
