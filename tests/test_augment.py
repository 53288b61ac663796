"""Mirrored pictures: texts that are mirrored, texts that are not, and everything that follows the pixels."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.data.mixture.augment import mirrored
from uniresxx.data.mixture.mirror_text import mirror_text
from uniresxx.data.scenes import scene_record
from uniresxx.imaging import masks
from uniresxx.types import Dialogue, Expression, Granularity, ImageRecord, Phrase, Turn

PAIRS = [
    ("left man", "right man"),
    ("LEFT most zebra", "RIGHT most zebra"),
    ("Leftmost cup, not the right one", "Rightmost cup, not the left one"),
    ("the left-hand side of the far right car", "the right-hand side of the far left car"),
    ("bottomleft bowl", "bottomright bowl"),
    ("top-left corner", "top-right corner"),
    ("2nd from left", "2nd from right"),
    ("third person from the right", "third person from the left"),
    ("lefty batter", "righty batter"),
    ("his left hand", "his right hand"),
    ("guy on lhs", "guy on rhs"),
    ("bright light to the left", "bright light to the right"),
    ("the red car's wheel", "the red car's wheel"),
    ("upright brown bear", "upright brown bear"),
]
DIRECTIONS = [
    "left man", "LEFT most zebra", "Leftmost cup, not the right one",
    "the left-hand side of the far right car", "bottomleft bowl", "top-left corner", "2nd from left",
    "third person from the right", "lefty batter", "his left hand", "guy on lhs",
    "bright light to the left", "the red car's wheel", "upright brown bear", "left", "RIGHT", "Right",
    "the left", "on the right", "man to the right of the bench", "left of the car", "man right of tree",
    "guy left", "woman far right", "person at the far left", "bottom right", "bowl, bottom right",
    "left and right shoes", "the left and the right cup", "from left to right", "third from left to right",
    "left-handed batter", "right-hand man", "batter is right handed", "on his left", "to her right",
    "right edge of table", "rightmost wine glass", "the man farthest to the left on the boat",
    "the boy in the red jacket at the front left", "the two men at the left end of the boat",
    "big left dog", "second left chair", "the left two zebras", "left two", "two left zebras",
    "dude left front", "man on right behind the bench", "to the right behind the man", "Left-most",
    "right-most", "the RIGHT one", "cup (left)", "man, right", "furthest to the left", "outermost left",
    "the car that is furthest to the left", "dog next to the car", "half of the left pizza",
    "left half of pizza", "the left wheel of the red car", "arrow pointing right", "man leaning left",
    "on left in blue", "cow on the left with horns", "what is on the left", "everything on the left",
    "lefthand cup", "TV on the left", "left side", "far right side of bench", "the left one?",
    "exactly the second house from the right here", "left.", "the cup (second from the left)",
]  # fmt: skip
NOT_MIRRORED = [
    "right side up", "cup right side up", "Right-Side-Up cup", "RIGHT SIDE UP", "rightside up",
    "wrong or right way up", "right there", "Right There", "right next to the dog", "man right next to him",
    "right now", "all right", "All right, the cup", "right after the car", "right behind the bench",
    "right in front", "right in the middle", "what is left", "what's left of the pizza", "left over",
    "left over pizza", "left-over pizza", "the left over rice", "leftover", "leftovers", "left alone",
    "dog left alone", "left behind", "right angle", "at right angles", "right angled ruler", "right-angle",
    "right of way", "the right of way sign", "two slices left", "only one left", "the slice that is left",
    "food left", "one left on plate", "the man who left", "she left the room", "he left",
    "bag left unattended", "left uneaten food", "just right", "that's right", "that is right",
    "the right size", "in the right place", "right place", "human rights", "bill of rights",
    "right, then the dog", "cup right by the door", "exactly right", "right above the car",
    "right at the edge", "quite right", "3 o'clock", "donut at three oclock", "clockwise next",
    "counterclockwise", "counter-clockwise", "the 3 o'clock position", "player 7", "number 7",
    "number seven", "the word EXIT", "EXIT sign", 'the sign "stop"', "the letter A", "B on the left",
    "letters", "bus that says stop", "west", "east wing", "north-west", "driver's side door",
    "passenger side", "port side", "starboard", "second elephant", "last cow", "L chair", "rt guy",
    "rigth man", "mann links", "左", "lEFT man", "toright of car", "no left turn", "left turn sign",
    "right fielder", "left out", "left open", "door left open", "left to dry", "towel left to dry",
    "who is right", "got up and left quickly", "the left right behind", "right back there",
    "right through the door", "man facing left", "left for dead", "on right now", "player seven",
    "he is left-over", "right, right behind", "the red cup, right?", "cup right?", "keep right",
    "right on the table", "right as rain", "right or wrong", "that is about right",
]  # fmt: skip


@pytest.mark.parametrize(("text", "mirrored_text"), PAIRS)
def test_sides_are_swapped_and_nothing_else_changes(text, mirrored_text):
    assert mirror_text(text) == mirrored_text
    assert mirror_text(mirrored_text) == text


@pytest.mark.parametrize("text", DIRECTIONS)
def test_a_clear_direction_is_swapped_and_swaps_back(text):
    found = mirror_text(text)
    assert found is not None and mirror_text(found) == text
    sides = {"left": "right", "right": "left", "lhs": "rhs", "rhs": "lhs"}
    expected = re.sub(r"(?<!b)(?<!up)(left|right|lhs|rhs)", lambda m: sides[m[0]], text.lower())
    assert found.lower() == expected


@pytest.mark.parametrize("text", NOT_MIRRORED)
def test_a_text_that_may_become_false_is_not_mirrored(text):
    assert mirror_text(text) is None


PHRASES = st.sampled_from([*DIRECTIONS, *NOT_MIRRORED])
WORDS = st.sampled_from(
    ["left", "right", "Left", "RIGHT", "leftmost", "second", "2nd", "rhs", "side", "up", "red", "the", "of", "man",
     "bright", "to", "from", "on", "is", "two", "next", "in", "there", "hand", ",", "way"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(WORDS, max_size=7), st.lists(PHRASES, max_size=2)).map(" ".join))
def test_mirroring_a_text_twice_gives_the_text(text):
    found = mirror_text(text)
    if found is not None:
        assert mirror_text(found) == text
        assert (found == text) == (re.search(r"\b(left|right|lhs|rhs)|most", text, re.IGNORECASE) is None)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_mirroring_moves_pixels_masks_boxes_labels_and_dialogues_together(height, width, seed):
    rng = np.random.default_rng(seed)
    mask, dense = rng.random((height, width)) < 0.4, rng.integers(0, 9, (height, width, 3), dtype=np.uint8)
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    box = np.array([[0, 0, rng.integers(1, width + 1), height]], dtype=np.float32)
    talk = Dialogue("d", (Turn("the left one?", (Phrase("left one", masks.encode(mask), Granularity.OBJECT),)),
                          Turn("what stands right of it?", (), "a cup to the left")))  # fmt: skip
    expressions = (Expression("e", "left cup", Granularity.OBJECT, masks.encode(mask), int(mask.sum())),
                   Expression("n", "right dog", Granularity.NONE, None))  # fmt: skip
    one = ImageRecord("i", height, width, expressions, None, pixels, (talk,), {"object": box}, dense)
    turned = mirrored(one)
    assert turned is not None
    assert np.array_equal(turned.pixels, pixels[:, ::-1]) and np.array_equal(turned.dense, dense[:, ::-1])
    assert np.array_equal(masks.decode(turned.expressions[0].rle), mask[:, ::-1])
    assert [e.text for e in turned.expressions] == ["right cup", "left dog"]
    assert turned.expressions[1].rle is None
    assert turned.expressions[0].area == mask.sum()
    first, second = turned.dialogues[0].turns
    assert (first.question, first.phrases[0].text) == ("the right one?", "right one")
    assert np.array_equal(masks.decode(first.phrases[0].rle), mask[:, ::-1])
    assert (second.question, second.answer) == ("what stands left of it?", "a cup to the right")
    assert turned.boxes["object"].tolist() == [[width - box[0, 2], 0, width, height]]
    back = mirrored(turned)
    assert np.array_equal(back.pixels, pixels) and np.array_equal(back.boxes["object"], box)
    assert back.expressions == one.expressions and back.dialogues == one.dialogues


def test_one_text_that_cannot_be_mirrored_keeps_the_picture_as_it_is():
    expressions = tuple(
        Expression(str(i), t, Granularity.NONE, None) for i, t in enumerate(["left cup", "player 7"])
    )
    assert mirrored(ImageRecord("i", 2, 2, expressions, pixels=np.zeros((2, 2, 3), np.uint8))) is None


def test_a_drawn_scene_mirrored_twice_is_the_same_scene():
    checked = 0
    for index in range(20):
        record = scene_record("scenes_easy", "train", index, 0)
        found = mirrored(record)
        if found is None:
            continue
        again = mirrored(found)
        assert again is not None and again.expressions == record.expressions
        assert again.dialogues == record.dialogues and np.array_equal(again.pixels, record.pixels)
        for before, after in zip(record.expressions, found.expressions, strict=True):
            words, mirrored_words = before.text.split(), after.text.split()
            assert ("left" in words) == ("right" in mirrored_words)
            assert (before.rle is None) == (after.rle is None)
        checked += 1
    assert checked >= 5
