"""Mirrored pictures: words that swap, words that forbid it, and everything that follows the pixels."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.data.mixture.augment import mirror_text, mirrored
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
REFUSED = [
    "3 o'clock", "donut at three oclock", "clockwise next", "woman facing us", "player 7", "bus that says stop",
    "the letter on the sign", "second elephant", "2nd zebra", "last cow", "leftovers on plate", "slice that is left",
    "food left over", "guy right behind the bench", "right in the middle", "all right", "driver's side door",
    "east wing", "L chair", "rt guy", "rigth man", "mann links", "la vache à gauche", "左",
]  # fmt: skip


@pytest.mark.parametrize(("text", "turned"), PAIRS)
def test_sides_swap_both_ways_and_nothing_else_does(text, turned):
    assert mirror_text(text) == turned
    assert mirror_text(turned) == text


@pytest.mark.parametrize("text", REFUSED)
def test_what_might_become_untrue_is_not_mirrored(text):
    assert mirror_text(text) is None


SIDED = ["left", "right", "Left", "RIGHT", "leftmost", "second", "2nd", "rhs", "side"]
WORDS = st.sampled_from(
    [*SIDED, "red", "the", "of", "man", "bright", "light", "copyright", "to", "from", "on"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=7).map(" ".join))
def test_mirroring_twice_is_nothing(text):
    turned = mirror_text(text)
    if turned is not None:
        assert mirror_text(turned) in (text, None)
        assert (turned == text) == (re.search(r"\b(left|right|rhs)", text, re.IGNORECASE) is None)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_pixels_masks_boxes_dense_and_dialogues_follow(height, width, seed):
    rng = np.random.default_rng(seed)
    mask, dense = rng.random((height, width)) < 0.4, rng.integers(0, 9, (height, width, 3), dtype=np.uint8)
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    box = np.array([[0, 0, rng.integers(1, width + 1), height]], dtype=np.float32)
    talk = Dialogue("d", (Turn("the left one?", (Phrase("left one", masks.encode(mask), Granularity.OBJECT),)),
                          Turn("what stands right of it?", (), "a cup to the left")))  # fmt: skip
    said = (Expression("e", "left cup", Granularity.OBJECT, masks.encode(mask), int(mask.sum())),
            Expression("n", "right dog", Granularity.NONE, None))  # fmt: skip
    one = ImageRecord("i", height, width, said, None, pixels, (talk,), {"object": box}, dense)
    turned = mirrored(one)
    assert turned is not None
    assert np.array_equal(turned.pixels, pixels[:, ::-1]) and np.array_equal(turned.dense, dense[:, ::-1])
    assert np.array_equal(masks.decode(turned.expressions[0].rle), mask[:, ::-1])
    assert [e.text for e in turned.expressions] == ["right cup", "left dog"] and turned.expressions[
        1
    ].rle is None
    assert turned.expressions[0].area == mask.sum()
    first, second = turned.dialogues[0].turns
    assert (first.question, first.phrases[0].text) == ("the right one?", "right one")
    assert np.array_equal(masks.decode(first.phrases[0].rle), mask[:, ::-1])
    assert (second.question, second.say) == ("what stands left of it?", "a cup to the right")
    assert turned.boxes["object"].tolist() == [[width - box[0, 2], 0, width, height]]
    back = mirrored(turned)
    assert np.array_equal(back.pixels, pixels) and np.array_equal(back.boxes["object"], box)
    assert back.expressions == one.expressions and back.dialogues == one.dialogues


def test_one_text_that_cannot_be_mirrored_keeps_the_picture():
    said = tuple(
        Expression(str(i), t, Granularity.NONE, None) for i, t in enumerate(["left cup", "player 7"])
    )
    assert mirrored(ImageRecord("i", 2, 2, said, pixels=np.zeros((2, 2, 3), np.uint8))) is None


def test_scenes_stay_true_by_their_own_words():
    """ "Left" and "right" of the first lesson are halves of the picture: exact after mirroring, by pixel."""
    turned = 0
    for index in range(20):
        record = scene_record("scenes_easy", "train", index, 0)
        found = mirrored(record)
        if found is None:
            continue
        turned += 1
        for before, after in zip(record.expressions, found.expressions, strict=True):
            words = before.text.lower().split()
            assert ("left" in words) == ("right" in after.text.lower().split()) or "right" in words
            assert (before.rle is None) == (after.rle is None)
    assert turned >= 5
