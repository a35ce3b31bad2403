"""Tiny models with random weights, and few data: what tests work on."""

from itertools import permutations

import pandas as pd
import torch

from lib.config import BUILD, Run, load_profile
from lib.datasets import EasyVqa, OpenMoji, Scenes, load_easyvqa, load_openmoji, load_scenes
from lib.datasets.openmoji import TONES
from lib.models.clip import Clip
from lib.models.editor import assemble, build_unet, build_vae
from lib.models.mdlm import Mdlm, MdlmConfig, MdlmModel
from lib.store import Store
from lib.tokenizer import train_tokenizer

TEXTS = [
    "yes, it is a blue circle",
    "no, it is a red rectangle",
    "the shape is a triangle",
    "the color is teal",
    "is there a blue shape in the image?",
    "what color is the circle?",
    "make the skin tone dark",
    "give them light skin",
]


def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=620)


def clip(seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    made = Clip.build(load_profile("smoke").base.clip, 64, tokenizer())
    made.model.eval()
    return made


def editor(seed: int = 0):
    torch.manual_seed(seed)
    base, text = load_profile("smoke").base.editor, clip(seed)
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(text.model.config.text_config).eval()
    unet = build_unet(base, 16, encoder.config.hidden_size).eval()
    pipe = assemble(build_vae(base, 64).eval(), encoder, text.tokenizer, unet)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.requires_grad_(False)
    return pipe


def mdlm(seed: int = 0, **shape) -> Mdlm:
    torch.manual_seed(seed)
    words = tokenizer()
    ids = {"mask_id": words.mask_token_id, "eos_id": words.eos_token_id, "pad_id": words.pad_token_id}
    vision = clip(seed).model.config.vision_config.to_diff_dict()
    sizes = {"vocab_size": len(words), "prompt_length": 16, "response_length": 12} | shape
    return Mdlm(MdlmModel(MdlmConfig(vision=vision, **sizes, **ids)).eval(), words)


def openmoji() -> OpenMoji:
    return load_openmoji(Store(BUILD / "store"))


def easyvqa(split: str = "train") -> EasyVqa:
    return load_easyvqa(Store(BUILD / "store"), split)


def scenes(split: str = "train") -> Scenes:
    return load_scenes(Store(BUILD / "store"), split)


def run(folder, notebook: str = "test", **overrides) -> Run:
    """A run at smoke scale with a store of its own, the data in it."""
    profile = load_profile("smoke", overrides)
    return Run(profile, 0, torch.device("cpu"), folder / "out", link_data(Store(folder / "store")), notebook)


def link_data(store: Store) -> Store:
    """The store with the rendered data of `build/store` in it, which take long to make."""
    store.root.mkdir(parents=True, exist_ok=True)
    for kind in ("openmoji", "easyvqa", "scenes"):
        (BUILD / "store" / kind).mkdir(parents=True, exist_ok=True)
        if not (store.root / kind).exists():
            (store.root / kind).symlink_to(BUILD / "store" / kind, target_is_directory=True)
    return store


def save_models(folder) -> dict[str, str]:
    """All three models saved below `folder`, as the section `models` of a profile."""
    clip().save(str(folder / "clip"))
    editor().save_pretrained(folder / "editor")
    lively(mdlm(prompt_length=48, response_length=72)).save(str(folder / "mdlm"))
    return {name: str(folder / name) for name in ("clip", "editor", "mdlm")}


def lively(made: Mdlm) -> Mdlm:
    """The model with weights so large that its answers depend on the picture."""
    draw = torch.Generator().manual_seed(0)
    for parameter in made.model.blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=draw)
    return made


SHORT = {"steps": 2, "batch": 4, "save_every": 1, "watch_every": 1}


def short_run(folder, models: dict[str, str], notebook: str = "test", collapse=(), disp=(), mdlm_collapse=()) -> Run:
    """A run of seconds on the saved tiny models, further settings of the studies merged onto it."""
    sampling = {"steps": 2, "batch": 8}
    study = {"edits": 12, "train": SHORT, "sampling": sampling, "samples": 3, "watch_samples": 1}
    answers = {"questions": 20, "train": SHORT, "purify": SHORT, "test_questions": 8, "curve_questions": 6}
    answers |= {"watch_questions": 4, "threshold": 0.1, "probes": 1, "batch": 8}
    settings = {"collapse": study | dict(collapse), "disp": answers | dict(disp)}
    asked = {"samples": 5, "masks": 3} | dict(mdlm_collapse)
    return run(folder, notebook, models=models, mdlm_collapse=asked, **settings)


def small_openmoji() -> OpenMoji:
    """Two concepts in six tones each (one to train, one to test), a hat, and the hat without colours; noise."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (14, 3, 64, 64), generator=draw, dtype=torch.uint8)
    emoji = [
        (f"{name}, {tone}", name, tone, split)
        for name, split in (("man", "train"), ("cook", "test"))
        for tone in range(6)
    ]
    emoji = pd.DataFrame([*emoji, ("top hat", "hat", 0, "train")], columns=["name", "concept", "tone", "split"])
    rows = [(12, 13, phrase, "grayscale", "", 12) for phrase in ("remove the colors", "make it black and white")]
    for first in (0, 6):
        for a, b in permutations(range(6), 2):
            for phrase in ("make the skin tone {}", "give them {} skin"):
                rows.append((first + a, first + b, phrase.format(TONES[b]), "tone", TONES[b], first + a))
    triples = pd.DataFrame(rows, columns=["source", "target", "instruction", "edit", "value", "emoji"])
    return OpenMoji(images, emoji, triples.assign(split=emoji["split"].to_numpy()[triples["emoji"]]))


def few_openmoji() -> OpenMoji:
    """Two concepts of each split in all their tones, ten other emoji of each, and the edits among them."""
    full = openmoji()
    emoji, keep = full.emoji, []
    toned = full.tone_variants()
    for split in ("train", "test"):
        own = torch.tensor((emoji["split"] == split).to_numpy())
        keep += toned[own & (toned >= 0).all(1)].unique(dim=0)[:2].flatten().tolist()
        keep += (own & (toned[:, 1] < 0)).nonzero()[:10, 0].tolist()
    edits = full.triples["source"].isin(keep) & (
        full.triples["target"].isin(keep) | (full.triples["target"] >= len(emoji))
    )
    triples = full.triples[edits].reset_index(drop=True)
    pictures = keep + sorted(set(triples["target"]) - set(keep))
    number = {picture: k for k, picture in enumerate(pictures)}
    for column in ("source", "target", "emoji"):
        triples[column] = triples[column].map(number)
    return OpenMoji(full.images[pictures], emoji.iloc[keep].reset_index(drop=True), triples)


def few_easyvqa(split: str = "train", count: int = 60) -> EasyVqa:
    """The questions about the first `count` pictures."""
    full = easyvqa(split)
    return EasyVqa(full.images[:count], full.table[full.table["image"] < count].reset_index(drop=True))


def few_scenes(split: str = "train", count: int = 30) -> Scenes:
    """The first `count` scenes and the questions about them."""
    full = scenes(split)
    table = full.table[full.table["image"] < count].reset_index(drop=True)
    return Scenes(full.images[:count], table, full.things[:count], full.tones[:count])
