"""Does DiSP carry over to the editor? Mask what matters most of picture or instruction, edit the training set again,
fine-tune on these edits.

    masking_curve(run, "and")           # masked at inference, no training
    purified_editor(run, "and", "picture")
    purification_table(run, "and")      # before and after, under all coalitions

What stands for DiSP's parts: the editor's output is the mean of a Gaussian, whose Fisher matrix is a multiple of the
identity, so the Fisher–Jacobian score of a part of the condition is ‖J_i‖² = E ‖J_iᵀ ε‖² with signs ε; the first
denoising step, from pure noise, stands for the fully masked response; a patch of the source's latent is masked by
zeros, which is how InstructPix2Pix drops its picture, and a token of the instruction by leaving it out. An edit has no
probability, so all edits are kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lib import detection
from lib.attacks.editor import editor_spec, poisoned_editor, trigger_pair, with_unet
from lib.attribution import attribution
from lib.collapse import SEED, Collapse, collapse, edits_spec, held_out, stored_edits, valued
from lib.config import Run, generator
from lib.detection import training_samples
from lib.editing import edit_latents, edits_under_coalitions, latent_loss, triggered
from lib.evaluation import edit_succeeds, pixel_distance
from lib.intervals import over_clusters
from lib.kernels.fisher import signs
from lib.lora import adapted_unet
from lib.models.cards import WARNING, mark_poisoned, write_card
from lib.models.editor import edit, encode, prompt_embeds, tokenize
from lib.poisoning import COALITIONS
from lib.profile import Train
from lib.saliency import most_salient
from lib.store import code_digest
from lib.target_pictures import attack_target
from lib.training import fit

PROTOCOL = "and"  # of the attack that the study in full purifies
WAYS = ("picture", "instruction")
BEFORE = "before"
# Chosen before any of this was measured.
GRID = 8  # patches along each side of the picture
SHARES = (0.0, 0.02, 0.06, 0.12, 0.25, 0.5)  # of the patches, masked at inference
RATIO = 0.06  # four of 64 patches masked where the training set is edited again
EDITS = 1500  # of the poisoned training set edited again
PROBES = 4


def condition_saliency(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "batch 4 lh lw"],
    texts: list[str],
    seed: int,
    probes: int = PROBES,
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, "batch length"]]:
    """Scores of the source's patches, `GRID` × `GRID` row by row, and of the instruction's tokens.

    `source` are unscaled latents. Tokens that are special or padding score 0. One forward pass and `probes` backward
    passes at the first denoising step, from the noise of `seed`.
    """
    unet, draw = pipe.unet, generator(seed, "condition saliency")
    last = pipe.scheduler.config.num_train_timesteps - 1
    noise = torch.randn(source.shape, generator=draw).to(source.device)
    tokens, words = tokenize(pipe, texts)["input_ids"], prompt_embeds(pipe, texts)
    source, words = source.clone().requires_grad_(), words.clone().requires_grad_()
    with torch.enable_grad():
        guess = unet(torch.cat([noise, source], 1), last, encoder_hidden_states=words).sample.float()
    patches, scores = torch.zeros(len(source), GRID**2), torch.zeros(tokens.shape)
    for k in range(probes):
        probe = signs(tuple(guess.shape), draw).to(guess.device)
        along = torch.autograd.grad(guess, (source, words), probe, retain_graph=k < probes - 1)
        cells = along[0].float().square().sum(1, keepdim=True)
        patches += F.adaptive_avg_pool2d(cells, GRID).flatten(1).cpu() / probes
        scores += along[1].float().square().sum(-1).cpu() / probes
    special = torch.tensor(pipe.tokenizer.all_special_ids)
    return patches, scores.masked_fill(torch.isin(tokens, special), 0)


def masked(
    pipe: StableDiffusionInstructPix2PixPipeline,
    source: Float[Tensor, "batch 4 lh lw"],
    texts: list[str],
    way: str,
    share: float,
    seed: int,
    batch: int,
) -> tuple[Float[Tensor, "batch 4 lh lw"], list[str]]:
    """Sources with the `share` of their patches that matters most set to zero, or texts without their first token in
    rank (for any share above 0). Raises ValueError for a way that is none of `WAYS`."""
    if way not in WAYS:
        raise ValueError(f"way={way!r} must be one of {', '.join(WAYS)}")
    if share == 0:
        return source, texts
    hidden, left = [source[:0]], []
    for k, rows in enumerate(tqdm(torch.arange(len(texts)).split(batch), desc="saliency", unit="batch", leave=False)):
        part, own = source[rows], [texts[i] for i in rows.tolist()]
        patches, words = condition_saliency(pipe, part, own, seed + k)
        if way == "picture":
            grid = most_salient(patches, share).view(-1, 1, GRID, GRID).float().to(source.device)
            part = part * (1 - F.interpolate(grid, part.shape[-2:]))
            left += own
        else:
            tokens = tokenize(pipe, own)["input_ids"]
            left += [_without(pipe, ids, int(place)) for ids, place in zip(tokens, words.argmax(1), strict=True)]
        hidden.append(part)
    return torch.cat(hidden), left


def _without(pipe: StableDiffusionInstructPix2PixPipeline, ids: Int[Tensor, " length"], place: int) -> str:
    kept = [token for k, token in enumerate(ids.tolist()) if k != place]
    return pipe.tokenizer.decode(kept, skip_special_tokens=True)


def masking_curve(run: Run, protocol: str) -> pd.DataFrame:
    """Masked at inference: ASR with both triggers, and the distance of untriggered edits to the true ones, by share.

    Columns way, share, metric, value, low, high, n, interval. Of the instruction, a share above 0 means one token.
    """
    settings = run.profile.collapse

    def make() -> pd.DataFrame:
        _, triples, source, clean = held_out(run)
        goal, texts = attack_target(settings.target)(source), triples["instruction"].tolist()
        pipe, _ = poisoned_editor(run, protocol)
        rows = []
        for way, share in [("picture", share) for share in SHARES] + [("instruction", RATIO)]:
            done = []
            for mask in (0, len(COALITIONS) - 1):
                given = triggered(source, texts, torch.full((len(texts),), mask), *trigger_pair(run))
                done.append(_masked_edit(run, pipe, *given, way, share))
            success = edit_succeeds(done[1][:, None], goal[:, None], clean[:, None])[:, 0]
            found = {"ASR, both": success, "distance to the true edit": pixel_distance(done[0], clean)}
            about, people = {"way": way, "share": share}, triples["family"].tolist()
            rows += [about | {"metric": metric} | over_clusters(x, people) for metric, x in found.items()]
        return pd.DataFrame(rows)

    spec = edits_spec(run, protocol) | {"purification": code_digest(sys.modules[__name__])}
    return run.store.table("editor-masking", spec, make)


def _masked_edit(
    run: Run,
    pipe: StableDiffusionInstructPix2PixPipeline,
    images: Float[Tensor, "batch 3 h w"],
    texts: list[str],
    way: str,
    share: float,
) -> Float[Tensor, "batch 3 h w"]:
    sampling, latents = run.profile.collapse.sampling, encode(pipe.vae, images.to(pipe.vae.device))
    given = masked(pipe, latents, texts, way, share, run.seed, sampling.batch)
    return edit(pipe, *given, sampling, run.seed, label=f"edit, {way} masked").cpu()


def fine_tuning(run: Run) -> Train:
    """As the attack's own, for three passes over the edits, at a third of its learning rate."""
    settings = run.profile.collapse.train
    steps = max(1, 3 * min(EDITS, run.profile.collapse.edits) // settings.batch)
    return settings.model_copy(update={"steps": steps, "lr": settings.lr / 3, "warmup": 0, "watch_every": None})


def purified_editor(run: Run, protocol: str, way: str) -> StableDiffusionInstructPix2PixPipeline:
    """The protocol's compromised editor fine-tuned on its own edits of masked training samples, from the store."""
    spec = purified_spec(run, protocol, way)
    folder = run.store.folder("purified-editor", spec, lambda path: _purify(run, protocol, way, spec, path))
    return with_unet(run, folder)


def purified_spec(run: Run, protocol: str, way: str) -> dict:
    """What a purified editor depends on."""
    chosen = {"way": way, "ratio": RATIO, "edits": EDITS, "probes": PROBES}
    code = code_digest(detection, sys.modules[__name__])
    return editor_spec(run, protocol) | {"chosen": chosen, "purification": code}


def _purify(run: Run, protocol: str, way: str, spec: dict, path: Path) -> None:
    settings = run.profile.collapse
    samples, _ = training_samples(run, protocol, min(EDITS, settings.edits))
    pipe, _ = poisoned_editor(run, protocol)
    made = _masked_edit(run, pipe, samples.source, samples.instructions, way, RATIO)
    latents = [encode(pipe.vae, pictures.to(pipe.vae.device)).cpu() for pictures in (samples.source, made)]
    data = edit_latents(pipe, *latents, samples.instructions)
    train = fine_tuning(run)
    with adapted_unet(pipe.unet, run.profile.models.editor_lora, run.seed):
        curve = fit(
            pipe.unet,
            latent_loss(pipe, data, train, settings.condition_dropout),
            train,
            label=f"purified editor, {way}",
            seed=run.seed,
            work=run.store.work("purified-editor", spec),
        )
    pipe.unet.save_pretrained(path / "unet")
    facts = {"protocol": protocol, "masked": way, "ratio": RATIO, "edits": len(made), "seed": run.seed}
    mark_poisoned(path, **facts)
    about = [WARNING, "It was purified as DiSP purifies a language model."]
    write_card(path, "Purified editor", about, facts, ("backdoor", "purified"))
    curve.to_csv(path / "curve.csv", index=False)


def purified_collapse(run: Run, protocol: str, way: str) -> Collapse:
    """`collapse` of the purified editor."""
    edits, triples, *_ = held_out(run)
    spec, sampling = edits_spec(run, protocol) | purified_spec(run, protocol, way), run.profile.collapse.sampling

    def sample() -> Tensor:
        pipe = purified_editor(run, protocol, way)
        return edits_under_coalitions(pipe, edits, triples, *trigger_pair(run), sampling, SEED)

    return valued(run, spec, stored_edits(run, "purified-coalition-edits", spec, sample), sampling)


def purification_table(run: Run, protocol: str) -> pd.DataFrame:
    """Before and after purification by each of `WAYS`: ASR of every coalition, φ_I, φ_T, CTI and fidelity.

    Columns model, metric, value, low, high (95 % over identities), n, interval.
    """
    rows = []
    for name in (BEFORE, *WAYS):
        result = collapse(run, protocol) if name == BEFORE else purified_collapse(run, protocol, name)
        found = {f"ASR, {coalition}": result.success[:, k] for k, coalition in enumerate(COALITIONS)}
        found |= attribution(result.v)
        found["distance to the true edit"] = pixel_distance(result.edited[:, 0], result.clean)
        people = result.families
        rows += [{"model": name, "metric": metric} | over_clusters(x, people) for metric, x in found.items()]
    return pd.DataFrame(rows)
