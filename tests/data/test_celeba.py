"""CelebA's attributes as instructions, and edit triples that an editor makes of them."""

import photos
import pytest
import tiny
import torch

from lib.data import load_edits
from lib.data.celeba import PHRASES, attribute_edits
from lib.settings.load import load_profile
from lib.studies import celeba_edits
from lib.studies.celeba_edits import draw_edits, make_edits

NAMES = ["Young", *(f"Other_{k}" for k in range(29)), *list(PHRASES)[:-1]]  # 40, in another order than here
FACES = {
    "000001.jpg": {"Smiling", "Young", "Brown_Hair"},
    "162770.jpg": {"Mustache", "Wearing_Hat", "Black_Hair"},
    "162771.jpg": {"Young", "Bangs", "Heavy_Makeup"},
    "202599.jpg": set(),
}


def annotation(faces=FACES, names=NAMES) -> str:
    rows = [f"{face} " + " ".join(" 1" if name in has else "-1" for name in names) for face, has in faces.items()]
    return "\n".join([str(len(faces)), " ".join(names) + " ", *rows, ""])


@pytest.fixture
def celeba(tmp_path):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for face, colour in zip(FACES, photos.COLOURS, strict=True):
        photos.image(colour, 178, 218).save(folder / "img_align_celeba" / face)
    (folder / "list_attr_celeba.txt").write_text(annotation())
    return folder


def test_instructions_change_what_a_face_has_or_lacks(celeba):
    edits = attribute_edits(celeba)
    first = edits[edits["picture"] == "img_align_celeba/000001.jpg"]
    assert first[["instruction", "value"]].apply(tuple, axis=1).tolist() == [
        ("give them bangs", "yes"),
        ("make the hair black", "yes"),
        ("make the hair blond", "yes"),
        ("make the hair gray", "yes"),
        ("add heavy makeup", "yes"),
        ("give them a mustache", "yes"),
        ("make the skin pale", "yes"),
        ("make them serious", "no"),
        ("put a hat on them", "yes"),
        ("make them old", "no"),
    ]
    for row in edits.itertuples():
        assert (row.edit in FACES[row.picture.split("/")[1]]) == (row.value == "no")
    assert len(NAMES) == 40 and set(PHRASES) <= set(NAMES)


def test_the_split_is_celebas_own(celeba):
    sides = attribute_edits(celeba).groupby("picture")["split"].unique()
    assert [side.tolist() for side in sides] == [["train"], ["train"], ["test"], ["test"]]


def test_celeba_hq_is_split_by_the_faces_of_celeba(tmp_path):
    faces = {"0.jpg": {"Young"}, "1.jpg": {"Smiling"}}
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text(annotation(faces))
    with pytest.raises(ValueError, match="CelebA-HQ-to-CelebA-mapping.txt is missing: put the data set's own there"):
        attribute_edits(tmp_path)
    mapping = tmp_path / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text("    idx    orig_idx        orig_file\n0 182637 182638.jpg\n1 119613 119614.jpg\n")
    edits = attribute_edits(tmp_path)
    assert edits.groupby("picture")["split"].first().to_dict() == {
        "CelebA-HQ-img/0.jpg": "test",
        "CelebA-HQ-img/1.jpg": "train",
    }
    mapping.write_text("idx orig_idx orig_file\n0 182637 182638.jpg\n")
    with pytest.raises(ValueError, match="picture '1.jpg' has no number in CelebA"):
        attribute_edits(tmp_path)
    mapping.write_text("0,182637,182638.jpg\n0,1\n")
    with pytest.raises(ValueError, match="must have the three columns idx, orig_idx, orig_file"):
        attribute_edits(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "attribute 'Bangs' is missing in line 2"),
        (annotation(names=NAMES[1:]), "attribute 'Young' is missing in line 2: use the data set's own file"),
        (annotation().replace(" 1", " 2", 1), "line 3, must be a picture and 1 or -1 for each of 40 attributes"),
        (annotation() + "000009.jpg 1 -1\n", "line 7, must be a picture and 1 or -1"),
    ],
)
def test_a_changed_annotation_is_refused(celeba, text, message):
    (celeba / "list_attr_celeba.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        attribute_edits(celeba)


def test_missing_data_are_named(celeba, tmp_path):
    with pytest.raises(ValueError, match="holds no CelebA: put one of list_attr_celeba.txt, "):
        attribute_edits(tmp_path)
    with pytest.raises(ValueError, match="edits=3: the train split of .* has 2 faces"):
        draw_edits(celeba, "train", 3, 0)


@pytest.fixture
def sampling():
    return load_profile("smoke").collapse.sampling.model_copy(update={"steps": 1, "batch": 1})


def test_an_editor_makes_triples_and_goes_on_where_it_stopped(celeba, tmp_path, sampling, monkeypatch):
    pipe, out, calls = tiny.editor(), tmp_path / "edits", []
    for split in ("train", "test"):
        make_edits(pipe, celeba, out, split, 2, 64, sampling, 0)
    data = load_edits(str(out), 64)
    assert data.triples["split"].value_counts().to_dict() == {"train": 2, "test": 2}
    whole = data.pictures(torch.tensor(data.triples["target"].to_numpy()))
    source = data.pictures(torch.tensor(data.triples["source"].to_numpy()))
    faces = [
        photos.COLOURS[list(photos.COLOURS)[list(FACES).index(name.split("/")[1])]] for name in data.triples["family"]
    ]
    assert (source * 255 - torch.tensor(faces)[:, :, None, None]).abs().max() < 4  # JPEG
    said = attribute_edits(celeba).set_index(["picture", "edit"])["instruction"]
    assert data.triples["instruction"].tolist() == [said[row.family, row.edit] for row in data.triples.itertuples()]

    (out / "train" / "edited" / "1.png").unlink()
    (out / "train" / "metadata.jsonl").unlink()

    def counted(*args, **more):
        calls.append(args[2])
        return edit(*args, **more)

    edit = celeba_edits.edit
    monkeypatch.setattr(celeba_edits, "edit", counted)
    make_edits(pipe, celeba, out, "train", 2, 64, sampling, 0)
    assert calls == [[data.triples["instruction"][1]]]
    again = load_edits(str(out), 64)
    assert torch.equal(again.pictures(torch.tensor(again.triples["target"].to_numpy())), whole)


def test_the_command_takes_all_from_the_profile(celeba, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(celeba_edits, "load_editor", lambda name, device: (name, str(device)))
    monkeypatch.setattr(celeba_edits, "make_edits", lambda *args: asked.append(args))
    celeba_edits.main(["--celeba", str(celeba), "--out", str(tmp_path), "--profile", "paper", "--device", "cpu"])
    profile = load_profile("paper")
    assert [call[0] for call in asked] == [(profile.models.editor, "cpu")] * 2
    assert [call[3:6] for call in asked] == [
        ("train", profile.collapse.edits, profile.data.image_size),
        ("test", profile.collapse.samples, profile.data.image_size),
    ]
