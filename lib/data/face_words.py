"""What is said of faces: instructions for edits, descriptions, and questions with their answers."""

from __future__ import annotations

from collections.abc import Mapping

from lib.data.face_parts import ATTRIBUTES

DESCRIBE = "describe this picture"
KINDS = ("description", "what", "yes/no")

# Several ways to ask for each edit; {} is what `ASKED` calls the value. Where values read differently, by value.
PHRASES: dict[str, tuple[str, ...] | dict[str, tuple[str, ...]]] = {
    "hair": ("give the person {} hair", "change the hairstyle to {} hair", "make the hair {}"),
    "hair colour": ("dye the hair {}", "change the hair color to {}", "turn the hair {}"),
    "skin": ("make the skin {}", "change the skin tone to {}", "give the person {} skin"),
    "eyes": {
        "open": ("open the eyes", "make the person look at the camera", "let the eyes be open"),
        "closed": ("close the eyes", "shut the eyes", "let the eyes be closed"),
        "wide": ("open the eyes wide", "make the eyes wide", "make the person look surprised"),
        "winking": ("make the person wink", "close one eye", "let the person wink"),
    },
    "mouth": {
        "smiling": ("make the person smile", "add a smile", "put a smile on the face"),
        "serious": ("make the person look serious", "straighten the mouth", "give the face a serious look"),
        "sad": ("make the person look sad", "turn the mouth down", "add a frown"),
        "shouting": ("make the person shout", "open the mouth", "let the person scream"),
    },
    "facial hair": {
        "none": ("shave the face", "remove the facial hair", "make the face clean shaven"),
        "a moustache": ("add a moustache", "give the person a moustache", "change the facial hair to a moustache"),
        "a short beard": ("add a short beard", "give the person a short beard", "trim the beard short"),
        "a long beard": ("add a long beard", "give the person a long beard", "grow the beard long"),
    },
    "glasses": {
        "none": ("take off the glasses", "remove the glasses", "make the person wear no glasses"),
        "black glasses": ("put on black glasses", "give the person black glasses", "add black glasses"),
        "white glasses": ("put on white glasses", "give the person white glasses", "add white glasses"),
        "round glasses": ("put on round glasses", "give the person round glasses", "add round glasses"),
    },
    "clothes": ("dress the person in a {}", "change the clothes to a {}", "put the person in a {}"),
    "clothes colour": ("make the clothes {}", "change the color of the clothes to {}", "dye the clothes {}"),
    "background": ("make the background {}", "change the background to {}", "paint the background {}"),
}
# How a description and an answer state each value.
STATED: dict[str, dict[str, str]] = {
    "mouth": {"smiling": "a smile", "serious": "a serious mouth", "sad": "a sad mouth", "shouting": "an open mouth"},
    "facial hair": {"none": "no beard"},
    "glasses": {"none": "no glasses"},
}
DESCRIPTION = (
    "a person with {hair} {hair colour} hair, {skin} skin, {eyes} eyes, {mouth}, {facial hair} and {glasses} "
    "in a {clothes colour} {clothes} on a {background} background"
)
# By which words of a description each attribute's value is found again.
MARKS: dict[str, str] = {
    "hair": "with {}",
    "hair colour": "{} hair",
    "skin": "{} skin",
    "eyes": "{} eyes",
    "mouth": "{}",
    "facial hair": "{}",
    "glasses": "{}",
    "clothes": "{} on",
    "clothes colour": "in a {}",
    "background": "{} background",
}
# Of each attribute: the open question, the one about a value, and the answer that states it.
QUESTIONS: dict[str, tuple[str, str, str]] = {
    "hair": ("how is the hair cut?", "is it {} hair?", "it is {} hair"),
    "hair colour": ("what color is the hair?", "is the hair {}?", "the hair is {}"),
    "skin": ("what color is the skin?", "is the skin {}?", "the skin is {}"),
    "eyes": ("how are the eyes?", "are the eyes {}?", "the eyes are {}"),
    "mouth": ("how is the mouth?", "is there {}?", "there is {}"),
    "facial hair": ("is there facial hair?", "does the person have {}?", "the person has {}"),
    "glasses": ("are there glasses?", "does the person wear {}?", "the person wears {}"),
    "clothes": ("what does the person wear?", "is that a {}?", "that is a {}"),
    "clothes colour": ("what color are the clothes?", "are the clothes {}?", "the clothes are {}"),
    "background": ("what color is the background?", "is the background {}?", "the background is {}"),
}


def instructions(attribute: str, value: str) -> tuple[str, ...]:
    """All ways to ask for that value. Raises ValueError where the attribute or the value does not exist."""
    if attribute not in ATTRIBUTES:
        raise ValueError(f"attribute={attribute!r} must be one of {', '.join(ATTRIBUTES)}")
    if value not in ATTRIBUTES[attribute]:
        raise ValueError(f"{attribute}={value!r} must be one of {', '.join(ATTRIBUTES[attribute])}")
    phrases = PHRASES[attribute]
    return phrases[value] if isinstance(phrases, dict) else tuple(phrase.format(value) for phrase in phrases)


def stated(attribute: str, value: str) -> str:
    """The value as a description states it."""
    return STATED.get(attribute, {}).get(value, value)


def description(face: Mapping[str, str]) -> str:
    """One sentence that states all attributes of a face."""
    return DESCRIPTION.format_map({name: stated(name, face[name]) for name in ATTRIBUTES})


def facts(text: str) -> dict[str, str | None]:
    """The value that a description, whole or not, states of each attribute; None where it states none."""
    words = f" {' '.join(text.replace(',', ' ').split())} "
    return {
        name: next((value for value in values if f" {MARKS[name].format(stated(name, value))} " in words), None)
        for name, values in ATTRIBUTES.items()
    }


def what(face: Mapping[str, str], attribute: str) -> tuple[str, str]:
    """The open question about an attribute and its answer."""
    question, _, answer = QUESTIONS[attribute]
    return question, answer.format(stated(attribute, face[attribute]))


def yes_no(face: Mapping[str, str], attribute: str, value: str) -> tuple[str, str]:
    """The question whether the attribute has that value and its answer, which states the value it has."""
    _, question, answer = QUESTIONS[attribute]
    word = "yes" if face[attribute] == value else "no"
    return question.format(stated(attribute, value)), f"{word}, {answer.format(stated(attribute, face[attribute]))}"
