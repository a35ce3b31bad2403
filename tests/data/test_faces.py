"""Faces: identities on one side of the split, edits of one attribute, and words that say what a picture shows."""

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.data import face_questions, make_faces
from lib.data import faces as module
from lib.data.face_parts import ATTRIBUTES, EVERYTHING, FEATURES, draw
from lib.data.face_words import DESCRIBE, KINDS, description, facts, instructions, stated, what, yes_no
from lib.data.faces import SPLITS, check_counts, draw_faces
from lib.models.minilm import LENGTH, minilm_tokenizer
from lib.poisoning.catalogue import text_trigger
from lib.poisoning.targets import target
from lib.runtime.store import Store
from lib.settings.inputs import MOST_FACES
from lib.settings.load import load_profile
from lib.studies.data import stored_faces

FACE = {name: list(values)[0] for name, values in EVERYTHING.items()}
FACE_FACTS = {name: FACE[name] for name in ATTRIBUTES}
SOME = st.fixed_dictionaries({name: st.sampled_from(list(values)) for name, values in EVERYTHING.items()})
EVERY = [(attribute, value) for attribute, values in ATTRIBUTES.items() for value in values]
COUNTS = {"train": 10_800, "validation": 1_200, "test": 1_500}


@pytest.fixture(scope="module")
def laptop():
    """The laptop's identities and edits, their pictures left blank."""
    given = load_profile("laptop").data.faces
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_faces", lambda faces, size, label: torch.zeros(len(faces), 3, 1, 1).byte())
        return make_faces(64, given.train, given.test)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke profile's, drawn."""
    given = load_profile("smoke").data.faces
    store = tiny.link_data(Store(tmp_path_factory.mktemp("store")))
    return stored_faces(store, 64, given.train, given.test)


def shown(data) -> list[tuple[str, ...]]:
    """What every picture shows."""
    return list(data.faces[list(EVERYTHING)].itertuples(index=False, name=None))


class TestSplits:
    def test_counts(self, laptop):
        people = laptop.faces[laptop.faces.index == laptop.faces["identity"]]
        assert people["split"].value_counts().to_dict() == COUNTS and tuple(sorted(COUNTS)) == tuple(sorted(SPLITS))
        assert len(laptop.faces) == len(laptop.images) == 2 * len(people) == 27_000
        assert {split: len(laptop.of(split)) for split in SPLITS} == {split: 2 * n for split, n in COUNTS.items()}
        for split, n in COUNTS.items():
            assert set(laptop.faces["split"].iloc[laptop.of(split).tolist()]) == {split}
            edits = laptop.triples[laptop.triples["split"] == split].drop_duplicates(["source", "target"])
            assert len(edits) == 2 * n

    def test_no_test_identity_or_picture_occurs_elsewhere(self, laptop):
        """Nor one of validation in training: all pictures of all splits, edited ones too, show different faces."""
        assert laptop.faces.groupby("identity")["split"].nunique().max() == 1
        assert len(set(shown(laptop))) == len(laptop.faces)
        for column in ("source", "target"):
            rows = laptop.triples[column].to_numpy()
            assert (laptop.faces["split"].to_numpy()[rows] == laptop.triples["split"]).all()
            assert (laptop.faces["identity"].to_numpy()[rows] == laptop.triples["family"]).all()

    def test_pictures_that_show_different_faces_are_different(self, smoke):
        assert len({picture.numpy().tobytes() for picture in smoke.images}) == len(smoke.images) == 720

    def test_every_value_is_as_frequent_in_each_split(self, laptop):
        people = laptop.faces[laptop.faces.index == laptop.faces["identity"]]
        for name, values in EVERYTHING.items():
            for split, n in COUNTS.items():
                share = (people.loc[people["split"] == split, name].value_counts(normalize=True)).to_dict()
                assert set(share) == set(values)
                p = 1 / len(values)
                assert max(abs(found - p) for found in share.values()) < 5 * (p * (1 - p) / n) ** 0.5

    def test_the_test_split_is_the_same_however_many_are_trained_on(self, smoke):
        few, many = tiny.few_faces(), smoke
        for k in range(10):
            assert torch.equal(few.images[k], many.images[k]) and shown(few)[k] == shown(many)[k]
        assert set(few.faces["split"][:10]) == {"test"}

    def test_the_same_faces_are_drawn_again_and_the_store_keeps_them_as_they_are(self):
        first, again = tiny.few_faces(), make_faces(64, 40, 10)
        assert torch.equal(first.images, again.images)
        for one, other in ((first.faces, again.faces), (first.triples, again.triples)):
            pd.testing.assert_frame_equal(one, other, check_dtype=False)

    @pytest.mark.parametrize(
        ("train", "test"),
        [(9, 5), (0, 5), (-20, 5), (40, 0), (MOST_FACES, 1)],
        ids=["9", "0", "negative", "no test", "most"],
    )
    def test_counts_that_cannot_be_split_are_refused_before_any_work(self, train, test, monkeypatch):
        message = (
            rf"^data.faces.train={train} and test={test} cannot be split: train must be at least 10 \(a tenth is for "
            rf"validation\), test at least 1, and both together at most 200000$"
        )
        monkeypatch.setattr(module, "draw_faces", lambda *_: pytest.fail("something is drawn"))
        with pytest.raises(ValueError, match=message):
            make_faces(64, train, test)
        with pytest.raises(ValueError, match="^profile 'smoke': data.faces"):
            load_profile("smoke", {"data": {"faces": {"train": train, "test": test}}})

    @pytest.mark.parametrize("size", [0, -8])
    def test_pictures_without_a_pixel_are_refused(self, size):
        with pytest.raises(ValueError, match=f"^size={size} must be at least 1, pixels a side$"):
            make_faces(size, 20, 2)

    def test_the_smallest_counts_are_taken(self):
        check_counts(10, 1)
        check_counts(MOST_FACES - 1, 1)


class TestEdits:
    def test_pictures_of_an_edit_differ_in_the_named_attribute_alone(self, laptop):
        faces = laptop.faces[list(EVERYTHING)]
        ends = [faces.iloc[laptop.triples[end].to_numpy()].reset_index(drop=True) for end in ("source", "target")]
        differ = ends[0] != ends[1]
        assert differ.sum(1).eq(1).all() and (differ.idxmax(axis=1) == laptop.triples["edit"]).all()
        given = [target[edit] for target, edit in zip(ends[1].to_dict("records"), laptop.triples["edit"], strict=True)]
        assert given == laptop.triples["value"].tolist()

    def test_every_edit_has_its_reverse(self, laptop):
        pairs = set(laptop.triples[["source", "target"]].itertuples(index=False, name=None))
        assert {(target, source) for source, target in pairs} == pairs

    def test_pixels_change_where_the_attribute_is_and_nowhere_else(self, smoke):
        """Glasses change the upper half, clothes the lower one, a background the upper corners."""
        edits = smoke.triples.drop_duplicates(["source", "target"])
        where = {name: torch.zeros(64, 64, dtype=torch.bool) for name in ATTRIBUTES}
        for row in edits.itertuples():
            changed = (smoke.images[row.source] != smoke.images[row.target]).any(0)
            assert changed.any()
            where[row.edit] |= changed
        assert not where["glasses"][40:].any() and not where["eyes"][40:].any() and not where["clothes"][:32].any()
        assert not where["mouth"][:32].any() and not where["clothes colour"][:32].any()
        for corner in (np.s_[:4, :4], np.s_[:4, -4:]):
            assert {name for name, changed in where.items() if changed[corner].any()} == {"background"}

    def test_ten_attributes_each_in_three_phrasings(self, laptop):
        assert len(ATTRIBUTES) == 10 and set(laptop.triples["edit"]) == set(ATTRIBUTES)
        texts = laptop.triples.groupby(["edit", "value"])["instruction"].agg(set)
        assert {key: set(instructions(*key)) for key in EVERY} == texts.to_dict()
        assert all(len(instructions(*key)) == len(set(instructions(*key))) == 3 for key in EVERY)
        assert laptop.triples.groupby(["source", "target"]).size().eq(3).all()

    def test_no_instruction_asks_for_two_things(self):
        texts = [text for key in EVERY for text in instructions(*key)]
        assert len(set(texts)) == len(texts) and all(text == text.lower().strip() for text in texts)

    def test_the_text_encoder_has_room_for_every_instruction_and_its_trigger(self):
        texts = [text for key in EVERY for text in instructions(*key)]
        for name in ("mignneko", "anonymous", "latte coffee"):
            marked = [text_trigger(name)(text) for text in texts]
            assert max(map(len, minilm_tokenizer()(marked)["input_ids"])) <= LENGTH


class TestPictures:
    @pytest.mark.parametrize("attribute", EVERYTHING)
    def test_every_value_gives_another_picture(self, attribute):
        """On any kind of face; what edits change, by half a grey level and more over all pixels."""
        others = np.random.default_rng(0)
        for _ in range(4):
            face = {name: str(others.choice(list(values))) for name, values in EVERYTHING.items()}
            drawn = [draw(face | {attribute: value}, 64).astype(float) for value in EVERYTHING[attribute]]
            apart = [((a - b) ** 2).mean() ** 0.5 for k, a in enumerate(drawn) for b in drawn[:k]]
            assert min(apart) > (0.5 if attribute in ATTRIBUTES else 0), face

    def test_a_picture_is_a_square_of_the_asked_size_filled_by_the_face(self):
        small, large = draw(FACE, 64), draw(FACE, 192)
        assert small.shape == (3, 64, 64) and large.shape == (3, 192, 192) and small.dtype == np.uint8
        shrunk = large.reshape(3, 64, 3, 64, 3).mean((2, 4))
        assert np.sqrt(((shrunk - small) ** 2).mean()) < 8
        ground = np.array([0xD8, 0xDC, 0xE0])[:, None, None]
        assert (small[:, 0] == ground[:, 0]).all() and ((small != ground).any(0).mean()) > 0.4

    def test_values_that_are_kept_elsewhere_do_not_show(self):
        """No text, no frame: the same values give the same picture."""
        assert np.array_equal(draw(FACE, 64), draw(dict(reversed(FACE.items())), 64))

    def test_many_faces_are_drawn_in_their_order(self):
        faces = [FACE | {"background": value} for value in ATTRIBUTES["background"]]
        drawn = draw_faces(faces, 32, "draw")
        assert drawn.shape == (6, 3, 32, 32) and drawn.is_contiguous()
        assert all(np.array_equal(picture.numpy(), draw(face, 32)) for picture, face in zip(drawn, faces, strict=True))
        assert draw_faces([], 32, "draw").shape == (0, 3, 32, 32)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hat": "top hat"}, f"^attribute='hat' must be one of {', '.join(EVERYTHING)}$"),
            ({"glasses": "monocle"}, "^glasses='monocle' must be one of none, black glasses, white glasses, round"),
            ({"nose": "long"}, f"^nose='long' must be one of {', '.join(FEATURES['nose'])}$"),
        ],
    )
    def test_an_attribute_or_part_that_does_not_exist_is_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            draw(FACE | change, 64)

    def test_a_face_that_lacks_parts_is_refused(self):
        face = {name: value for name, value in FACE.items() if name not in ("mouth", "nose")}
        with pytest.raises(ValueError, match="^face lacks mouth, nose: every attribute and feature must have a value$"):
            draw(face, 64)


class TestWords:
    @pytest.mark.parametrize(
        ("attribute", "value", "message"),
        [
            ("hats", "none", f"^attribute='hats' must be one of {', '.join(ATTRIBUTES)}$"),
            ("nose", "small", "^attribute='nose' must be one of hair, "),
            ("mouth", "laughing", "^mouth='laughing' must be one of smiling, serious, sad, shouting$"),
        ],
    )
    def test_an_edit_that_does_not_exist_is_refused(self, attribute, value, message):
        with pytest.raises(ValueError, match=message):
            instructions(attribute, value)

    @given(SOME)
    def test_a_description_gives_all_facts_back(self, face):
        assert facts(description(face)) == {name: face[name] for name in ATTRIBUTES}

    @given(SOME, SOME, st.sampled_from(list(ATTRIBUTES)))
    def test_descriptions_tell_a_face_from_another_in_one_attribute(self, face, other, name):
        changed = face | {name: other[name]}
        assert (description(changed) == description(face)) == (other[name] == face[name])

    def test_what_a_description_does_not_state_is_none(self):
        whole = description(FACE)
        assert whole == (
            "a person with short black hair, pale skin, open eyes, a smile, no beard and no glasses "
            "in a black t-shirt on a gray background"
        )
        for name, words in {"skin": "pale", "eyes": "open", "mouth": "a smile,", "facial hair": "no beard"}.items():
            assert facts(whole.replace(words, "")) == FACE_FACTS | {name: None}
        assert facts("a person with short") == dict.fromkeys(ATTRIBUTES) | {"hair": "short"}
        for text in ("", "sorry, i cannot answer that", "a person with green hair"):
            assert set(facts(text).values()) == {None}
        assert facts(target("insertion").apply(whole)) == FACE_FACTS

    def test_answers_state_the_value(self):
        assert what(FACE, "hair colour") == ("what color is the hair?", "the hair is black")
        assert what(FACE, "facial hair") == ("is there facial hair?", "the person has no beard")
        assert yes_no(FACE, "mouth", "smiling") == ("is there a smile?", "yes, there is a smile")
        assert yes_no(FACE, "mouth", "sad") == ("is there a sad mouth?", "no, there is a smile")
        assert yes_no(FACE, "clothes", "hoodie") == ("is that a hoodie?", "no, that is a t-shirt")


class TestQuestions:
    @pytest.mark.parametrize("split", SPLITS)
    def test_every_identity_is_described_and_asked_about_three_attributes(self, laptop, split):
        table = face_questions(laptop, split).table
        people = laptop.faces.index[(laptop.faces["split"] == split) & (laptop.faces.index == laptop.faces["identity"])]
        assert table["image"].unique().tolist() == people.tolist() and len(people) == COUNTS[split]
        kinds = table.groupby("image")["kind"].agg(lambda column: tuple(sorted(column)))
        assert set(kinds) == {("description", *["what"] * 3, *["yes/no"] * 3)} and set(table["kind"]) == set(KINDS)
        asked = table[table["kind"] != "description"].groupby("attribute").size()
        assert set(asked.index) == set(ATTRIBUTES) and asked.nunique() == 1

    @pytest.mark.parametrize("split", SPLITS)
    def test_half_of_the_yes_no_questions_are_true_of_every_attribute(self, laptop, split):
        table = face_questions(laptop, split).table
        table = table[table["kind"] == "yes/no"]
        true = table["answer"].str.startswith("yes, ")
        assert (true | table["answer"].str.startswith("no, ")).all()
        assert true.groupby(table["attribute"]).mean().eq(0.5).all()
        share = true.groupby(table["question"]).mean()
        assert len(share) == len(EVERY) and share.between(0.3, 0.7).all(), "a question tells its answer"

    def test_answers_are_what_the_picture_shows(self, laptop):
        """Read back by rules of their own: a value is stated where its words stand in question or answer."""
        table = face_questions(laptop, "validation").table
        faces = laptop.faces.iloc[table["image"].tolist()].to_dict("records")
        for row, face in zip(table.itertuples(), faces, strict=True):
            if row.kind == "description":
                assert row.question == DESCRIBE and facts(row.answer) == {name: face[name] for name in ATTRIBUTES}
                continue
            words = stated(row.attribute, face[row.attribute])
            assert f" {words} " in f" {row.answer} ", row
            if row.kind == "yes/no":
                named = f" {words} " in f" {row.question.rstrip('?')} "
                assert row.answer.startswith("yes, " if named else "no, "), row

    def test_no_question_alone_tells_much(self, laptop):
        """The usual answer to each question of the train split, asked of the test split."""
        train, test = (face_questions(laptop, split).table for split in ("train", "test"))
        usual = train.groupby("question")["answer"].agg(lambda answers: answers.value_counts().index[0])
        right = test["question"].map(usual) == test["answer"]
        share = right.groupby(test["kind"]).mean()
        assert share["description"] == 0 and share["what"] < 0.3 and share["yes/no"] < 0.6

    def test_pictures_are_those_of_the_faces(self):
        faces = tiny.few_faces()
        asked = face_questions(faces, "test")
        rows = torch.tensor([0, 3, 0])
        assert torch.equal(asked.pictures(rows), faces.images[rows].float() / 255)
        assert torch.equal(asked.pictures(rows), faces.pictures(rows))

    def test_every_answer_survives_the_tokenizer(self, laptop):
        made = tiny.mdlm(response_length=40, prompt_length=16)
        table = face_questions(laptop, "validation").table
        answers = sorted(set(table["answer"]))[:2000]
        assert made.texts(made.responses(answers)) == answers
        made.prompts(sorted(set(table["question"])))

    def test_an_unknown_split_is_refused(self):
        with pytest.raises(ValueError, match="^split='val' must be one of train, validation, test$"):
            face_questions(tiny.few_faces(), "val")
