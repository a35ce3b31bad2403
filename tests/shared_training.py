"""A training in several processes, for `test_parallel.py`: argument 1 is a folder, argument 2 the step at which the
second process is killed, once."""

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from test_training import denoising, module, settings

from lib.parallel import processes
from lib.store import Store
from lib.training import fit

torch.set_num_threads(1)
folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
store, spec = Store(folder / "store"), {"number": 1}
net, rank, seen = module(), processes()[0], []
draw = denoising(net, seen=seen)


def loss(generator):
    killed = folder / "killed"
    if rank == 1 and len(seen) == kill_at and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(generator)


def make(path: Path) -> None:
    curve = fit(net, loss, settings(accumulate=2), label="x", seed=5, work=store.work("net", spec))
    curve.to_csv(path / "curve.csv", index=False)
    save_file({"weight": net[2].weight.detach()}, path / "weight.safetensors")


made = store.folder("net", spec, make)
(folder / f"seen-{rank}").write_text(f"{len(seen)} {(made / 'curve.csv').is_file()}")
