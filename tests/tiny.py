"""Tiny models with random weights, and few data: what tests work on."""

import contextlib

import pandas as pd
import torch
from transformers import CLIPTextModel

from lib.data import EasyVqa, FaceQuestions, Faces, face_questions
from lib.data.face_parts import ATTRIBUTES
from lib.data.face_words import DESCRIBE, QUESTIONS, description, stated
from lib.models.clip import Clip
from lib.models.editor import save_text_encoder
from lib.models.mdlm import Mdlm, MdlmConfig, MdlmModel
from lib.models.minilm import load_minilm
from lib.models.new_editor import assemble, build_unet, build_vae
from lib.models.tokenizer import train_tokenizer
from lib.runtime.store import Store
from lib.settings.load import load_profile
from lib.settings.paths import BUILD
from lib.studies.data import stored_easyvqa, stored_faces
from lib.studies.run import Run
from lib.tasks.questions import Questions

TEXTS = [
    "yes, it is a blue circle",
    "no, it is a red rectangle",
    "the shape is a triangle",
    "the color is teal",
    "is there a blue shape in the image?",
    "what color is the circle?",
    "make the skin dark",
    "give the person pale skin",
]
VOCABULARY = 800  # room for every word of descriptions and questions, so that they are as short as in a trained model


def tokenizer():
    return train_tokenizer([*TEXTS, *sayings()], vocab_size=VOCABULARY)


def sayings() -> list[str]:
    """Descriptions, questions and answers that hold every value of every attribute of faces."""
    said = [DESCRIBE]
    for k in range(max(map(len, ATTRIBUTES.values()))):
        face = {name: list(values)[k % len(values)] for name, values in ATTRIBUTES.items()}
        said.append(description(face))
        said += [text.format(stated(name, face[name])) for name, texts in QUESTIONS.items() for text in texts]
    return said


def clip(seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    base = load_profile("smoke").base.clip
    shape = base.tower.model_dump() | {"patch": base.patch, "projection": base.projection}
    made = Clip.build(tokenizer(), image_size=64, **shape)
    made.model.eval()
    return made


def editor(seed: int = 0):
    """Under a small CLIP text encoder, as the control is."""
    text = clip(seed)
    return _editor(CLIPTextModel(text.model.config.text_config).eval(), text.tokenizer)


def minilm_editor(seed: int = 0):
    """Under the published MiniLM, as the base editor is."""
    torch.manual_seed(seed)
    return _editor(*load_minilm())


def _editor(encoder, words):
    base = load_profile("smoke").base.editor
    latent, width = {"latent_channels": base.latent_channels}, encoder.config.hidden_size
    unet = build_unet(channels=base.unet_channels, latent_size=16, text_width=width, **latent).eval()
    vae = build_vae(channels=base.vae_channels, image_size=64, **latent).eval()
    pipe = assemble(vae, encoder, words, unet)
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


def few_faces() -> Faces:
    """36 identities to train on, 4 for validation and 10 held out, with an edit of each and its reverse."""
    return stored_faces(Store(BUILD / "store"), 64, 40, 10)


def few_face_questions(split: str = "train") -> FaceQuestions:
    return face_questions(few_faces(), split)


def easyvqa(split: str = "train") -> EasyVqa:
    return stored_easyvqa(Store(BUILD / "store"), split)


def few_easyvqa(split: str = "train", count: int = 60) -> EasyVqa:
    """The questions about the first `count` pictures."""
    full = easyvqa(split)
    return EasyVqa(full.images[:count], full.table[full.table["image"] < count].reset_index(drop=True))


def run(folder, notebook: str = "test", **overrides) -> Run:
    """A run at smoke scale with a store of its own, the data in it."""
    profile = load_profile("smoke", overrides)
    return Run(profile, 0, torch.device("cpu"), folder / "out", link_data(Store(folder / "store")), notebook)


def link_data(store: Store) -> Store:
    """The store with the rendered data of `build/store` in it, which take long to make."""
    store.root.mkdir(parents=True, exist_ok=True)
    for kind in ("faces", "easyvqa"):
        (BUILD / "store" / kind).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # of a run before, or of another process of this one
            (store.root / kind).symlink_to(BUILD / "store" / kind, target_is_directory=True)
    return store


def save_models(folder) -> dict[str, str]:
    """All models saved below `folder`, as the section `models` of a profile."""
    clip().save(str(folder / "clip"))
    editor().save_pretrained(folder / "editor")
    save_text_encoder(editor(1), str(folder / "control"), folder / "editor")
    lively(mdlm(prompt_length=48, response_length=72)).save(str(folder / "mdlm"))
    return {name: str(folder / name) for name in ("clip", "editor", "control", "mdlm")}


def lively(made: Mdlm, std: float = 0.5) -> Mdlm:
    """The model with weights so large that its answers depend on the picture."""
    draw = torch.Generator().manual_seed(0)
    for parameter in made.model.blocks.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=draw)
    return made


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(features: torch.Tensor) -> Questions:
    """One question without padding about each of the pictures, to a model as `mdlm` makes it."""
    rows = len(features)
    prompts, responses = torch.full((rows, 16), 5), torch.zeros(rows, 12, dtype=torch.long)
    return Questions(features, torch.arange(rows), prompts, responses, [""] * rows, pd.DataFrame(index=range(rows)))


THRESHOLD = 0.01  # so low that tiny models fill an answer in a few steps
SHORT = {"steps": 2, "batch": 4, "save_every": 1, "watch_every": 1}


def short_run(folder, models: dict[str, str], notebook: str = "test", collapse=(), disp=(), mdlm_collapse=()) -> Run:
    """A run of seconds on the saved tiny models, further settings of the studies merged onto it."""
    sampling = {"steps": 2, "batch": 8}
    study = {"edits": 12, "train": SHORT, "sampling": sampling, "samples": 3, "watch_samples": 1}
    answers = {"questions": 20, "train": SHORT, "purify": SHORT, "test_questions": 8, "curve_questions": 6}
    answers |= {"watch_questions": 4, "threshold": THRESHOLD, "estimator": {"probes": 1}, "batch": 8}
    answers |= {"kinds": None, "image_trigger": "checker"}
    settings = {"collapse": study | dict(collapse), "disp": answers | dict(disp)}
    asked = {"samples": 5, "masks": 3} | dict(mdlm_collapse)
    return run(folder, notebook, models=models, mdlm_collapse=asked, **settings)
