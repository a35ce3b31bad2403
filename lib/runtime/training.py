"""One training loop for every model: AdamW under accelerate, resumable to the step.

All randomness of step k comes from a generator seeded by (seed, label, k), so a run that was
killed and resumed sees the batches it would have seen. The processes of a launch draw the same and share
the batch (`lib.runtime.processes`): the mean of their gradients is that of the whole. Under DDP each holds all of the
model, under FSDP (`lib.runtime.sharding`) a part; the first one saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.runtime.devices import half
from lib.runtime.processes import count, fully_sharded, mean, rank, told
from lib.runtime.progress import resume, save
from lib.runtime.seeds import generator
from lib.runtime.sharding import gathered, shard, unshard
from lib.settings.sections import Train

Loss = Callable[[torch.Generator], Tensor]
Watch = Callable[[int], dict[str, float]]

POINTS = 100


def fit(
    module: nn.Module,
    loss: Loss,
    settings: Train,
    *,
    label: str,
    seed: int,
    work: Path | None = None,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """Minimise `loss(generator)` over the parameters of `module` that require gradients.

    `loss` draws its own batch with the generator and returns a scalar, in several processes that of its own
    share. `watch(step)` is called every `settings.watch_every` steps and at the end, never where that is None; what
    it returns is kept beside the loss.
    With `work`, a folder, progress is saved every `settings.save_every` steps and resumed (`lib.runtime.progress`).

    Returns the curve: columns step, loss (mean since the row before), lr, and what `watch` gave.
    Raises FloatingPointError when the loss is no longer finite.
    """
    accelerator, objective = _prepared(module, loss, settings)
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), settings.lr, weight_decay=settings.weight_decay)
    optimizer = accelerator.prepare_optimizer(optimizer)
    start, rows, recent = resume(work, parameters, optimizer, accelerator.scaler) if work else (0, [], [])
    if told(start) != start:
        raise ValueError(f"work={str(work)!r} must be a folder that all processes see")
    every, watched_every = max(1, settings.steps // POINTS), settings.watch_every if watch else None
    module.train()
    steps = range(start, settings.steps)
    bar = tqdm(steps, desc=label, initial=start, total=settings.steps, unit="step", disable=rank() > 0)
    for step in bar:
        rate = learning_rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            value = objective(generator(seed, label, step))
        accelerator.backward(value)
        accelerator.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(mean(value))
        if not math.isfinite(recent[-1]):
            raise FloatingPointError(f"{label}: the loss at step {step} is {recent[-1]}; lower lr={settings.lr}")
        done = step + 1
        last = done == settings.steps
        watched = watched_every is not None and (last or done % watched_every == 0)
        if done % every == 0 or last or watched:
            rows.append({"step": done, "loss": sum(recent) / len(recent), "lr": rate})
            bar.set_postfix(loss=f"{rows[-1]['loss']:.4f}")
            recent.clear()
        if watched:
            rows[-1] |= _watched(module, objective, watch, done)
        if work and (last or done % settings.save_every == 0):
            save(work, done, parameters, optimizer, accelerator.scaler, rows, recent)
    module.eval()
    if fully_sharded():
        unshard(objective)
    return pd.DataFrame(rows)


def _prepared(module: nn.Module, loss: Loss, settings: Train) -> tuple[Accelerator, Loss | nn.Module]:
    """accelerate for the module's device and precision, and the loss, under DDP or FSDP in several processes."""
    AcceleratorState._reset_state(True)
    device = next(p for p in module.parameters() if p.requires_grad).device
    short = settings.precision == "bf16" and half(device) == torch.float16
    accelerator = Accelerator(mixed_precision="fp16" if short else settings.precision, cpu=device.type == "cpu")
    objective = loss if count() == 1 else Objective(module, loss)
    if fully_sharded():
        shard(objective, module)
    elif count() > 1:
        objective = accelerator.prepare_model(objective)
    return accelerator, objective


def _watched(module: nn.Module, objective: Loss | nn.Module, watch: Watch, step: int) -> dict[str, float]:
    """What `watch` gives of the module in evaluation mode, all of its weights gathered."""
    module.eval()
    with gathered(objective) if fully_sharded() else nullcontext():
        values = watch(step)
    module.train()
    return values


def fit_stages(
    module: nn.Module, stages: Iterable[tuple[str, Loss, Train]], *, label: str, seed: int, work: Path
) -> pd.DataFrame:
    """`fit` to one loss after another, each stage (name, loss, settings) asked for when the one before it is done.

    Returns the curves with the column stage.
    """
    curves = []
    for name, loss, settings in stages:
        folder = work / name
        folder.mkdir(exist_ok=True, parents=True)
        curve = fit(module, loss, settings, label=f"{label}, {name}", seed=seed, work=folder)
        curves.append(curve.assign(stage=name))
    return pd.concat(curves, ignore_index=True)


class Objective(nn.Module):
    """A loss as what `module` does when it is called: there DDP and FSDP begin a step."""

    def __init__(self, module: nn.Module, loss: Loss):
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, draw: torch.Generator) -> Tensor:
        return self.loss(draw)


def stacked(curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Several curves in one table, told apart by the column run."""
    return pd.concat([curve.assign(run=name) for name, curve in curves.items()], ignore_index=True)


def learning_rate(step: int, settings: Train) -> float:
    """Linear warm-up over `warmup` steps, then cosine decay to zero at `steps`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
