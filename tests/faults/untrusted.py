"""What comes from others: checkpoints, tables and pictures that ask for more than to be read."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from trial import Trial, refusal

from lib.data import load_edits, load_llava
from lib.models import load_editor, load_mdlm
from lib.settings.paths import ROOT

KIND = "untrusted input"
CHECKPOINTS = ROOT / "data" / "checkpoints"
PATHS = {
    "upwards": "../secret.png",
    "upwards from within": "pictures/../../secret.png",
    "absolute": "/etc/hostname",
    "a link out": "pictures/link.png",
    "a quote and a line's end": 'pictures/"\n.png',
    "empty": "",
}


def trials() -> Iterator[Trial]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        yield from _checkpoints(root)
        yield from _tables(root)


def _checkpoints(root: Path) -> Iterator[Trial]:
    pickled = pickle.dumps({"weights": [1.0]})
    for load, source, weights in (
        (load_mdlm, "mdlm", "model.safetensors"),
        (load_editor, "editor", "unet/diffusion_pytorch_model.safetensors"),
    ):
        bad = shutil.copytree(CHECKPOINTS / source, root / f"{source}-pickle")
        for file in (bad / Path(weights).parent).glob("*.safetensors"):
            file.unlink()
        (bad / weights).with_suffix(".bin").write_bytes(pickled)
        yield refusal(KIND, f"{source}: a pickle for weights", lambda f=load, b=bad: f(str(b)), bad.name)
        bad = shutil.copytree(CHECKPOINTS / source, root / f"{source}-renamed")
        (bad / weights).write_bytes(pickled)
        yield refusal(KIND, f"{source}: a pickle called safetensors", lambda f=load, b=bad: f(str(b)), bad.name)
    bad = shutil.copytree(CHECKPOINTS / "mdlm", root / "mdlm-auto")
    config = json.loads((bad / "config.json").read_text()) | {"model_type": "mine", "auto_map": {"AutoModel": "a.B"}}
    (bad / "config.json").write_text(json.dumps(config))
    (bad / "a.py").write_text("raise SystemExit('run')")
    yield refusal(KIND, "a config with auto_map and its own code", lambda: load_mdlm(str(bad)), "model_type")


def _tables(root: Path) -> Iterator[Trial]:
    Image.new("RGB", (8, 8)).save(root / "secret.png")
    for what, path in PATHS.items():
        folder = root / f"edits {what}"
        (folder / "pictures").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "pictures" / "fine.png")
        (folder / "pictures" / "link.png").symlink_to(root / "secret.png")
        row = {"input_image": path, "edit_prompt": "make it blue", "edited_image": "pictures/fine.png"}
        (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
        yield refusal(KIND, f"edits: a path that is {what}", lambda f=folder: load_edits(str(f), 8).pictures)
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
        (folder / "some.json").write_text(json.dumps([{"id": "1", "image": path, "conversations": turns}]))
        ask = lambda f=folder: load_llava(str(f), "train", 8, "some.json")  # noqa: E731
        yield refusal(KIND, f"questions: a path that is {what}", ask)
    folder = root / "bomb"
    folder.mkdir()
    (folder / "bomb.png").write_bytes(bomb(60_000, 60_000))
    row = {"input_image": "bomb.png", "edit_prompt": "make it blue", "edited_image": "bomb.png"}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")

    def read() -> None:
        import torch

        load_edits(str(folder), 8).pictures(torch.tensor([0]))

    yield refusal(KIND, "a picture of 3.6 billion pixels in some kilobytes", read, "pixels")


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is of that size, of one row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(width * 3 + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
