"""Both of two like things, asked for in one picture: right by the masks alone, in the place of other questions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from train.recipe import check
from train.recipes.tiny_scenes import tiny_scenes
from uniresxx.data.mixture.batches import SceneSource
from uniresxx.data.scenes import scene_record
from uniresxx.data.scenes.phrasing import Style, fits
from uniresxx.data.scenes.words import ORDER_TAILS, ORDER_WORDS, SYNONYMS
from uniresxx.errors import InputError
from uniresxx.imaging.masks import decode
from uniresxx.types import Expression, Granularity, ImageRecord

PICTURES = range(90)


# order -> the words for it that training may use: the first in scenes_easy, the others in scenes
SAID = {
    order: (easy, *SYNONYMS[ORDER_WORDS[order]][0], ORDER_TAILS[order])
    for order, easy in {"left": "left", "right": "right", "top": "", "bottom": "", "large": "big",
                        "small": "small"}.items()
}  # fmt: skip


def order_of(e: Expression, preset: str) -> str:
    words = {order: said[:1] if preset == "scenes_easy" else said[1:] for order, said in SAID.items()}
    [order] = [order for order, said in words.items() if any(said) and any(word in e.text for word in said)]
    return order


def pairs_of(record: ImageRecord) -> list[tuple[Expression, Expression]]:
    """Expressions that follow one another and ask for the two ends of one order."""
    preset = str(record.source["preset"])
    found = [e for e in record.expressions if "_pair_" in e.expression_id]
    ends = (("left", "right"), ("top", "bottom"), ("large", "small"))
    return [(a, b) for a, b in pairwise(found) if (order_of(a, preset), order_of(b, preset)) in ends]


def middle(e: Expression, axis: int) -> float:
    return float(np.nonzero(decode(e.rle))[axis].mean())


@pytest.mark.parametrize("preset", ["scenes_easy", "scenes"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_two_masks_are_apart_and_as_their_words_say(preset: str, stage: int) -> None:
    seen: set[str] = set()
    for number in PICTURES:
        for a, b in pairs_of(scene_record(preset, "train", number, 0, stage)):
            order = order_of(a, preset)
            assert not (decode(a.rle) & decode(b.rle)).any() and a.granularity == b.granularity
            seen |= {order, str(a.granularity)}
            if a.granularity == Granularity.OBJECT:
                one, other = (
                    (-e.area if order == "large" else middle(e, int(order == "left"))) for e in (a, b)
                )
                assert one < other
    asked = {"left"} | ({"top"} if preset == "scenes" else set()) | ({"large"} if stage > 1 else set())
    assert seen == asked | {"object"} | ({"part"} if stage > 2 else set())


def test_full_scenes_say_it_in_many_ways() -> None:
    pictures = [scene_record("scenes", "train", number, 0, 2) for number in range(300)]
    texts = {e.text for record in pictures for pair in pairs_of(record) for e in pair}
    said = {words: [text for text in texts if words in text] for own in SAID.values() for words in own[1:]}
    assert all(said.values()), [words for words, found in said.items() if not found]
    assert all(fits(text, Style(telegraphic=True)) for text in texts)


def test_they_replace_half_of_what_is_there_and_nothing_of_what_is_not() -> None:
    for number in PICTURES:
        plain, record = (
            scene_record("scenes_easy", "train", number),
            scene_record("scenes_easy", "train", number, 0, 3),
        )
        own = [e for e in record.expressions if "_pair_" not in e.expression_id]
        if len(own) == len(record.expressions):
            assert own == list(plain.expressions)
            continue
        absent = [e for e in plain.expressions if e.rle is None]
        assert [e for e in own if e.rle is None] == absent and all(e in plain.expressions for e in own)
        there = len(plain.expressions) - len(absent)
        assert there / 2 - 2 <= len(own) - len(absent) <= there / 2 + 1
        assert len({e.text for e in record.expressions}) == len(record.expressions)


def test_stages_start_where_the_recipe_says() -> None:
    source = SceneSource("scenes_easy", 0, pair_slots=(10, 30, 60))
    starts = {"left": 10, "right": 10, "big": 30, "small": 30}
    texts = {slot: [e.text for pair in pairs_of(source(slot)) for e in pair] for slot in range(90)}
    for slot, found in texts.items():
        words = {word for text in found for word in text.split()}
        assert all(slot >= starts[word] for word in words & set(starts))
        assert slot >= 60 or not any(" of " in text for text in found)
    assert any(" of " in text for slot in range(60, 90) for text in texts[slot])


@pytest.mark.parametrize("wrong", [(5, 3), (1, 2, 3, 4)])
def test_wrong_stages_are_refused(wrong: tuple[int, ...]) -> None:
    recipe = tiny_scenes()
    with pytest.raises(InputError, match="pair_images"):
        check(replace(recipe, data=replace(recipe.data, pair_images=wrong)))
