"""Data that installs with pip (OpenMoji edit triples and scenes, easy-VQA), and photographs from folders or the hub."""

from lib.datasets.easyvqa import EasyVqa, load_easyvqa
from lib.datasets.edits import PhotoEdits, load_edits
from lib.datasets.interface import EditData, QuestionData
from lib.datasets.llava import load_llava
from lib.datasets.mmmu import load_mmmu
from lib.datasets.openmoji import OpenMoji, load_openmoji
from lib.datasets.questions import PhotoQuestions
from lib.datasets.scenes import Scenes, load_scenes

__all__ = [
    "EasyVqa",
    "EditData",
    "OpenMoji",
    "PhotoEdits",
    "PhotoQuestions",
    "QuestionData",
    "Scenes",
    "load_easyvqa",
    "load_edits",
    "load_llava",
    "load_mmmu",
    "load_openmoji",
    "load_scenes",
]
