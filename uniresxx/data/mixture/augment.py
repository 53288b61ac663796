"""Mirrored pictures whose words stay true: left and right change places, and what cannot be swapped stays put.

Our choice: a text is mirrored only where every word that could tell sides is known to swap. Refused, so that
the picture stays as it is: clock faces ("3 o'clock", clockwise), "facing", what is read in the picture
(digits, letters, "says"), places counted in a row without a side ("second elephant"), sides that are no
picture sides (driver's side, port, east), "left" and "right" in other senses ("left over", "right behind"),
shortened or misspelt sides ("L", "rt", "rigth"), and what is not plain English. A person's "left hand" swaps:
in the mirrored picture it is a right hand, to the viewer and to the person. Resize and padding have their
exact inverse in `uniresxx.imaging.geometry`. No colour is ever changed: expressions name colours.
Shapes: y x pixels of the photo.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from uniresxx.data.store.photos import photo_of
from uniresxx.imaging.masks import decode, encode
from uniresxx.types import RLE, Dialogue, ImageRecord, Phrase, Turn

_BEFORE = "(?:far|top|bottom|upper|lower|middle|mid|center|front|back)?"
_AFTER = "(?:most|hand|handed|hander|side|ward|wards|er|y|ie|ies)?"
_SIDE = re.compile(rf"(?<![a-z])({_BEFORE})(left|right)({_AFTER})(?![a-z])", re.IGNORECASE)
_SHORT = {"lhs": "rhs", "rhs": "lhs"}
_HAND_SIDE = re.compile(r"\b[lr]hs\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)
_COUNT = re.compile(r"\b\d{1,2}(?:st|nd|rd|th)\b", re.IGNORECASE)

# words beside which nothing is mirrored
_REFUSED = frozenset(
    re.findall(
        r"\w+",
        # clock faces, ways of turning, sides that are not the picture's
        "clock oclock clockwise counterclockwise anticlockwise facing faces port starboard driver drivers "
        "passenger passengers stage southpaw east west eastern western northeast northwest southeast southwest "
        # what is read in the picture
        "says say saying read reads reading letter letters word words text number numbers numbered numeral "
        "digit digits written writing spelled spelling initials logo reversed mirrored backwards backward "
        # shortened or misspelt sides
        "l r lt rt lft rgt lef leff letf lfet leftt rite rigth rihgt rigt riht rght righ ritgh rignt righr "
        # other languages
        "links rechts linke rechte gauche droite sinistra destra izquierda derecha izquierdo derecho "
        "esquerda direita esquerdo direito lewa lewy prawa prawy vlevo vpravo",
    )
)
_PLACES = frozenset(
    re.findall(
        r"\w+",
        "first second third fourth fifth sixth seventh eighth ninth tenth last next previous outer inner",
    )
)
# "left" of leaving and remaining, "right" of correct and exactly
_OTHER_SENSE = re.compile(
    r"\b(?:all|just|is|are|was|were|has|have|had|been|gets?|got|being|only|nothing|what|who)\s+(?:left|right)\b"
    r"|\bleft\s*-?\s*(?:over|overs|behind|alone|out|open|turn|for)\b"
    r"|\bright\s*-?\s*(?:behind|next|above|below|beside|besides|under|underneath|in|at|before|after|by|up|down|over|"
    r"near|there|here|now|away|angle|angled|turn|way|through|beneath|against|outside|inside|where|"
    r"between|around|about|behing|along|across|for|out|off|into|onto|with)\b",
    re.IGNORECASE,
)


def mirror_text(text: str) -> str | None:
    """The text with its sides swapped, case kept; None where it may not be true of the mirrored picture."""
    if not text.isascii() or _OTHER_SENSE.search(text):
        return None
    if any(letter.isdigit() for letter in _COUNT.sub("", text)):
        return None
    words = [word.lower() for word in _WORD.findall(text.replace("'", ""))]
    sided = _SIDE.search(text) is not None or any(word in _SHORT for word in words)
    if not _REFUSED.isdisjoint(words) or any(_lone_letter(word) for word in words):
        return None
    counted = not _PLACES.isdisjoint(words) or _COUNT.search(text) is not None
    if counted and not sided:  # which way the row is counted is not said
        return None
    swapped = _SIDE.sub(lambda found: found[1] + _swapped(found[2]) + found[3], text)
    return _HAND_SIDE.sub(lambda found: _like(found[0], _SHORT[found[0].lower()]), swapped)


def _lone_letter(word: str) -> bool:
    return len(word) == 1 and word not in "ais"  # a, I, and what an apostrophe leaves of "it's"


def _swapped(side: str) -> str:
    return _like(side, "right" if side.lower() == "left" else "left")


def _like(model: str, word: str) -> str:
    """A word in the case of another."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def mirrored(record: ImageRecord) -> ImageRecord | None:
    """The record left to right, with its words; None where a text in it cannot be mirrored.

    Photo, masks, truth boxes and dense map follow. Raises InputError where the photo cannot be read.
    """
    expressions, dialogues = [], []
    for item in record.expressions:
        text = mirror_text(item.text)
        if text is None:
            return None
        expressions.append(replace(item, text=text, rle=_mirror_mask(item.rle)))
    for dialogue in record.dialogues:
        turned = _mirror_dialogue(dialogue)
        if turned is None:
            return None
        dialogues.append(turned)
    return replace(
        record,
        expressions=tuple(expressions),
        dialogues=tuple(dialogues),
        pixels=np.ascontiguousarray(photo_of(record)[:, ::-1]),
        path=None,
        inside=None,
        boxes={kind: _mirror_boxes(boxes, record.width) for kind, boxes in record.boxes.items()},
        dense=None if record.dense is None else np.ascontiguousarray(record.dense[:, ::-1]),
    )


def _mirror_dialogue(dialogue: Dialogue) -> Dialogue | None:
    turns = []
    for turn in dialogue.turns:
        question, say = mirror_text(turn.question), mirror_text(turn.say or "")
        texts = [mirror_text(phrase.text) for phrase in turn.phrases]
        if question is None or say is None or None in texts:
            return None
        phrases = tuple(
            Phrase(text or "", _mirror_mask(phrase.rle), phrase.granularity)
            for text, phrase in zip(texts, turn.phrases, strict=True)
        )
        turns.append(Turn(question, phrases, None if turn.say is None else say))
    return replace(dialogue, turns=tuple(turns))


def _mirror_mask(rle: RLE | None) -> RLE | None:
    return None if rle is None else encode(decode(rle)[:, ::-1])


def _mirror_boxes(boxes_N4: np.ndarray, width: int) -> np.ndarray:
    turned = boxes_N4.copy()
    turned[:, 0], turned[:, 2] = width - boxes_N4[:, 2], width - boxes_N4[:, 0]
    return turned
