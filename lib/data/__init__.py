"""Data that installs with pip (faces, easy-VQA), and photographs from folders or the hub, behind two interfaces.

Nothing here is kept on disk: that is `lib.studies.data`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "easyvqa": ["EasyVqa", "read_easyvqa"],
        "faces": ["FaceQuestions", "Faces", "face_questions", "make_faces"],
        "interface": ["EditData", "QuestionData"],
        "llava": ["load_llava"],
        "mmmu": ["load_mmmu"],
        "photo_edits": ["PhotoEdits", "load_edits"],
        "pictures": ["PhotoQuestions"],
        "registry": ["register_edits", "register_questions"],
    },
)
