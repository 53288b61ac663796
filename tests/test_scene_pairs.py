"""Both of two like things, asked for in one picture: right by the masks alone, in the place of other questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.recipe import check
from train.recipes.tiny_scenes import tiny_scenes
from uniresxx.data.mixture.batches import SceneSource
from uniresxx.data.scenes import scene_record
from uniresxx.errors import InputError
from uniresxx.imaging.masks import decode
from uniresxx.types import Expression, Granularity, ImageRecord

PICTURES = range(90)


def pairs_of(record: ImageRecord) -> list[tuple[Expression, Expression]]:
    found = [e for e in record.expressions if "_pair_" in e.expression_id]
    by_rest: dict[str, list[Expression]] = {}
    for e in found:
        words = [w for w in e.text.split() if w not in ("left", "right", "big", "small")]
        by_rest.setdefault(" ".join(words), []).append(e)
    return [(a, b) for a, b in (both for both in by_rest.values() if len(both) == 2)]


def middle(e: Expression) -> float:
    return float(np.nonzero(decode(e.rle))[1].mean())


@pytest.mark.parametrize("preset", ["scenes_easy", "scenes"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_two_masks_are_apart_and_as_their_words_say(preset: str, stage: int) -> None:
    seen: set[str] = set()
    for number in PICTURES:
        for a, b in pairs_of(scene_record(preset, "train", number, 0, stage)):
            words = set(a.text.split()) & {"left", "right", "big", "small"}
            assert not (decode(a.rle) & decode(b.rle)).any() and a.granularity == b.granularity
            seen |= words | {str(a.granularity)}
            if "left" in words and a.granularity == Granularity.OBJECT:
                assert middle(a) < middle(b)
            if "big" in words and a.granularity == Granularity.OBJECT:
                assert a.area > b.area
    asked = {"left"} | ({"big"} if stage > 1 else set())
    assert seen == asked | {"object"} | ({"part"} if stage > 2 else set())


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
