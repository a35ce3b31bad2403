"""Data that installs with pip (faces, easy-VQA), and photographs from folders or the hub."""

from lib.data.easyvqa import EasyVqa, load_easyvqa
from lib.data.edits import PhotoEdits, load_edits
from lib.data.faces import FaceQuestions, Faces, face_questions, load_faces
from lib.data.interface import EditData, QuestionData
from lib.data.llava import load_llava
from lib.data.mmmu import load_mmmu
from lib.data.questions import PhotoQuestions

__all__ = [
    "EasyVqa",
    "EditData",
    "FaceQuestions",
    "Faces",
    "PhotoEdits",
    "PhotoQuestions",
    "QuestionData",
    "face_questions",
    "load_easyvqa",
    "load_edits",
    "load_faces",
    "load_llava",
    "load_mmmu",
]
