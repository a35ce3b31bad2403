"""What the launches of tests/slow run: accelerate launch … tests/worker.py FOLDER [TASK …]

A study's command, in FOLDER/killed, and while it has the processes joined, the tasks.
"""

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.models.adapters import adapted
from lib.models.mdlm import Mdlm
from lib.runtime import store, training
from lib.runtime.processes import count, rank
from lib.runtime.shards import sharded
from lib.runtime.store import Store
from lib.runtime.training import fit
from lib.settings.sections import Lora, Train
from lib.studies import run as config
from lib.studies import runs
from lib.studies.attacks.mdlm import poisoned_mdlm, poisoned_training_set
from lib.studies.disp.purification import purified_set
from lib.tasks.edits import edit_latents, latent_loss
from lib.tasks.questions import Questions, answer_loss

torch.set_num_threads(1)
TRAIN = Train(steps=12, batch=8, lr=1e-2, warmup=3, precision="no", save_every=4, watch_every=6)
MDLMS: dict[str, Mdlm] = {}


def learn(folder: Path, name: str, module: torch.nn.Module, loss) -> None:
    """The model fine-tuned, kept in a store with its curve."""
    kept, spec = Store(folder), {"name": name}

    def make(path: Path) -> None:
        work = kept.work("trained", spec)
        watch = lambda step: {"norm": sum(p.double().norm().item() for p in module.parameters())}  # noqa: E731
        curve = fit(module, loss, TRAIN, label=name, seed=1, work=work, watch=watch)
        curve.to_csv(path / "curve.csv", index=False)
        trained = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
        save_file(trained, path / "model.safetensors")

    kept.folder("trained", spec, make)


def mdlms(scratch: Path) -> dict[str, Mdlm]:
    """Our own MDLM in float32 and in float64, LLaDA-V, LaViDa and DiffusionGemma.

    Made before the processes join: then transformers' save_pretrained writes in the first one alone.
    """
    import tiny
    import tiny_diffusion_gemma
    import tiny_lavida
    import tiny_llada_v

    made = {"float32": tiny.mdlm(), "float64": tiny.mdlm()}
    made["float64"].model.double()
    made["lavida"] = tiny_lavida.lavida(scratch / "lavida")
    made["gemma"] = tiny_diffusion_gemma.diffusion_gemma(scratch / "gemma")
    made["llada-v"] = tiny_llada_v.llada_v(scratch / "llada-v")
    return made


def learn_mdlms(folder: Path, names: tuple[str, ...] | None = None) -> None:
    """All of `mdlms` but LLaDA-V in full, that by adapters over checkpointed blocks."""
    for name in names or MDLMS:
        mdlm = MDLMS[name]
        data = samples(mdlm)
        with adapted(mdlm.model, Lora(rank=2, alpha=4), 0) if name == "llada-v" else nullcontext():
            learn(folder, name, mdlm.model, answer_loss(mdlm, data, TRAIN))


def learn_sharded(folder: Path) -> None:
    """Some of `mdlms` where a process holds a part, and how many of the trained numbers that are."""
    held, resume = [], training.resume

    def counted(work: Path, parameters: dict[str, torch.Tensor], *others):
        held.append(
            (sum(p.to_local().numel() for p in parameters.values()), sum(p.numel() for p in parameters.values()))
        )
        return resume(work, parameters, *others)

    training.resume = counted
    names = ("float64", "llada-v", "gemma")
    learn_mdlms(folder, names)
    training.resume = resume
    (folder / f"held-{rank()}.json").write_text(json.dumps(dict(zip(names, held, strict=True))))


def samples(mdlm: Mdlm) -> Questions:
    """20 random answers about five random pictures."""
    shape, draw = mdlm.model.config, torch.Generator().manual_seed(0)
    size = getattr(shape, "picture", None) or [shape.vision["image_size"]] * 2
    with torch.no_grad():
        features = mdlm.model.features(torch.rand(5, 3, *size, generator=draw).to(mdlm.model.dtype))
    answers = torch.randint(20, 40, (20, shape.response_length), generator=draw)
    prompts, picture = mdlm.prompts(["is it blue?"] * 20), torch.arange(20) % 5
    return Questions(features, picture, prompts, answers, ["yes"] * 20, pd.DataFrame(index=range(20)))


def learn_editor(folder: Path) -> None:
    """The editor's U-Net on random latents, in float64."""
    import tiny

    pipe, draw = tiny.editor(), torch.Generator().manual_seed(0)
    pipe.unet.double(), pipe.text_encoder.double()
    latents = torch.randn(2, 20, 4, 16, 16, generator=draw, dtype=torch.float64)
    texts, weight = (tiny.TEXTS * 3)[:20], torch.rand(20, generator=draw)
    data = edit_latents(pipe, *latents, texts, weight)
    pipe.unet.requires_grad_(True)
    learn(folder, "editor", pipe.unet, latent_loss(pipe, data, TRAIN, 0.1))


def shards(folder: Path) -> None:
    """Rows that tell which process made them, and rows that must not."""
    kept = Store(folder)

    def make() -> dict[str, torch.Tensor]:
        def part(rows: range) -> dict[str, torch.Tensor]:
            time.sleep(0.02)
            with (folder / f"made-by-{rank()}").open("a") as log:
                log.write(f"{rows.start} ")
            return {"x": torch.arange(rows.start, rows.stop).sqrt()}

        return sharded(kept.work("shards", {}), 20, 3, part, "rows")

    found = kept.tensors("shards", {}, make)["x"]
    (folder / f"seen-by-{rank()}").write_text(json.dumps(found.tolist()))


def study(folder: Path) -> config.Run:
    """A tiny study below `folder`, on the models that models.json there names."""
    import tiny

    train = {"steps": 60, "batch": 4, "save_every": 5, "watch_every": 30, "precision": "no", "lr": 1e-3}
    settings = {"train": train, "ratio": 0.5, "batch": 3}
    return tiny.short_run(folder, json.loads((folder / "models.json").read_text()), disp=settings)


def attack(folder: Path) -> None:
    """The compromised model of the study."""
    poisoned_mdlm(study(folder))


def purify(folder: Path) -> None:
    """Saliency and answers of the study's training set, in seven and three batches."""
    run, sys.modules["lib.tasks.questions"].together = study(folder), lambda mdlm: 8
    mdlm = Mdlm.load(run.profile.models.mdlm)
    purified_set(run, mdlm, poisoned_training_set(run, mdlm))


def wait(folder: Path) -> None:
    """An artifact that another process is making."""
    store.PULSE = 0.1
    Store(folder).table("waited", {}, lambda: pd.DataFrame({"x": [1]}))


def command(folder: Path, tasks: list[str]) -> None:
    """The compromised model of the study in `killed` by `python -m lib.studies.runs`, then the tasks."""
    killed, trained = folder / "killed", runs.trained
    profile = study(killed).profile.model_dump(mode="json")
    overrides = json.dumps({name: profile[name] for name in ("models", "collapse", "disp")})
    chosen = ("--profile", "smoke", "--overrides", overrides, "--mark", str(killed / "mark.json"))

    def train(run: config.Run, *chosen) -> dict[str, str]:
        keys = trained(run, *chosen)
        assert count() == int(os.environ["WORLD_SIZE"])
        for task in tasks:
            globals()[task](folder)
        return keys

    in_place = patch.object(config, "BUILD", killed), patch("sys.argv", ["lib.studies.runs", "mdlm-poisoned", *chosen])
    with in_place[0], in_place[1], patch.object(runs, "trained", train):
        runs.main()


if __name__ == "__main__":
    folder, tasks = Path(sys.argv[1]), sys.argv[2:]
    if any(task.startswith("learn_") for task in tasks):
        MDLMS.update(mdlms(folder / f"checkpoints-{os.environ['RANK']}"))
    command(folder, tasks)
