"""Run-length codes against plain arrays and an encoder written here; malformed codes are refused."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uniresxx.errors import InputError
from uniresxx.imaging import masks

settings.register_profile("masks", deadline=None, max_examples=150)
quick = settings(settings.get_profile("masks"))
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
MASKS = hnp.arrays(bool, SHAPES)


def runs_of(mask):
    """Column-major run lengths, background first, by walking the pixels."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs


def text_of(runs):
    """The COCO code of run lengths, from its description: 5 bits and a continuation bit per character."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            low = value & 31
            value >>= 5
            more = value != (-1 if low & 16 else 0)
            text += chr(48 + (low | (32 if more else 0)))
    return text


@quick
@given(MASKS)
def test_code_equals_independent_encoder_and_comes_back(mask):
    rle = masks.encode(mask)
    assert rle == {"size": list(mask.shape), "counts": text_of(runs_of(mask))}
    back = masks.decode(rle)
    assert back.dtype == bool and np.array_equal(back, mask)
    assert masks.validate(rle, mask.shape) == rle
    assert masks.area(rle) == int(mask.sum()) and type(masks.area(rle)) is int


@quick
@given(SHAPES.flatmap(lambda shape: st.lists(hnp.arrays(bool, shape), min_size=1, max_size=4)))
def test_union_and_intersection_are_those_of_arrays(layers):
    rles = [masks.encode(layer) for layer in layers]
    assert masks.union(rles, layers[0].shape) == masks.encode(np.any(layers, axis=0))
    assert masks.intersection_area(rles[0], rles[-1]) == int((layers[0] & layers[-1]).sum())


@quick
@given(MASKS)
def test_box_is_tight(mask):
    box = masks.box_of(masks.encode(mask))
    if not mask.any():
        assert box is None
        return
    ys, xs = np.nonzero(mask)
    assert box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@quick
@given(MASKS, st.data())
def test_every_coco_spelling_gives_the_same_code(mask, data):
    rle = masks.encode(mask)
    height, width = mask.shape
    runs = runs_of(mask)
    at = data.draw(st.integers(0, len(runs) - 1))
    cut = data.draw(st.integers(0, runs[at]))
    padded = [*runs[:at], cut, 0, runs[at] - cut, *runs[at + 1 :]]  # an empty run inside
    for segmentation in (
        {"size": [height, width], "counts": runs},
        {"size": [height, width], "counts": padded},
        {"size": [height, width], "counts": text_of(padded)},
        {"size": [height, width], "counts": rle["counts"].encode()},
        [rle, {"size": [height, width], "counts": runs}],
    ):
        assert masks.from_coco(segmentation, height, width) == rle


def test_overlapping_polygons_are_united_not_summed():
    square, shifted = [2, 2, 12, 2, 12, 12, 2, 12], [7, 2, 17, 2, 17, 12, 7, 12]
    rle = masks.from_polygons([square, shifted], 20, 20)
    expected = np.zeros((20, 20), dtype=bool)
    expected[2:12, 2:17] = True
    assert np.array_equal(masks.decode(rle), expected)
    assert masks.from_coco([square, shifted], 20, 20) == rle


def test_a_polygon_of_four_numbers_is_no_box():
    solid = [2, 2, 12, 2, 12, 12, 2, 12]
    assert masks.area(masks.from_polygons([[0, 0, 19, 19]], 20, 20)) == 0
    assert masks.from_polygons([[0, 0, 19, 19], solid], 20, 20) == masks.from_polygons([solid], 20, 20)


def test_empty_forms():
    assert masks.area(masks.empty(3, 5)) == 0
    assert masks.empty(3, 5) == masks.encode(np.zeros((3, 5), bool)) == masks.union([], (3, 5))
    assert masks.from_coco([], 3, 5) == masks.empty(3, 5)


def test_three_hundred_masks_and_areas_beyond_32_bits_add_up():
    full = masks.encode(np.ones((600, 800), bool))
    assert masks.area(masks.union([full] * 300, (600, 800))) == 480_000
    assert sum(masks.area(full) for _ in range(10_000)) == 4_800_000_000


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.text(max_size=20),
        st.fixed_dictionaries(
            {
                "size": st.one_of(
                    st.none(),
                    st.lists(st.integers(-3, 60000), min_size=1, max_size=3),
                    st.just([4, 6]),
                ),
                "counts": st.one_of(
                    st.none(),
                    st.text(max_size=30),
                    st.binary(max_size=30),
                    st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=12),
                    st.lists(st.one_of(st.integers(), st.floats(), st.none()), max_size=6),
                ),
            }
        ),
    )
)
def test_malformed_codes_raise_input_error_only(value):
    for work in (masks.validate, masks.decode, masks.area, masks.box_of, lambda v: masks.from_coco(v, 4, 6)):
        try:
            work(value)
        except InputError:
            continue
    try:
        rle = masks.validate(value)
    except InputError:
        return
    assert masks.decode(rle).shape == tuple(rle["size"])
    assert masks.area(rle) == int(masks.decode(rle).sum())


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.floats(), max_size=9), max_size=4))
def test_malformed_polygons_raise_input_error_only(polygons):
    try:
        rle = masks.from_coco(polygons, 30, 40)
    except InputError:
        return
    assert rle["size"] == [30, 40]


@pytest.mark.parametrize(
    ("rle", "word"),
    [
        ({"size": [2, 3], "counts": "5"}, "covers 5"),
        ({"size": [2, 3], "counts": "7"}, "covers 7"),
        ({"size": [2, 3], "counts": ""}, "empty"),
        ({"size": [2, 3], "counts": "ß"}, "ASCII"),
        ({"size": [2, 3], "counts": "P"}, "breaks off"),
        ({"size": [2, 3], "counts": "PPPPPPPPPPPP0"}, "longer"),
        ({"size": [2, 3], "counts": "3O4"}, "negative"),
        ({"size": [2, 3], "counts": "303"}, "empty run"),
        ({"size": [2, 3], "counts": [6]}, "list"),
        ({"size": [100_000, 100_000], "counts": "0"}, "cap"),
        ({"size": [0, 3], "counts": "0"}, "from 1 up"),
        ({"counts": "6"}, "size and counts"),
    ],
)
def test_each_refusal_says_why(rle, word):
    with pytest.raises(InputError, match=word):
        masks.validate(rle)


def test_wrong_size_names_both():
    with pytest.raises(InputError, match=r"2 x 3 .* 3 x 2"):
        masks.validate(masks.empty(2, 3), (3, 2))
    with pytest.raises(InputError):
        masks.intersection_area(masks.empty(2, 3), masks.empty(3, 2))
    with pytest.raises(InputError):
        masks.union([masks.empty(2, 3)], (3, 2))


def test_polygon_bombs_are_refused_before_they_are_walked():
    with pytest.raises(InputError, match="far outside"):
        masks.from_polygons([[0, 0, 1e12, 0, 1e12, 1e12]], 100, 100)
    zigzag = [value for _ in range(20_000) for value in (0, 0, 999, 999)]
    with pytest.raises(InputError, match="over"):
        masks.from_polygons([zigzag], 1000, 1000)


def test_a_checked_mask_is_parsed_once_and_a_changed_one_again(monkeypatch):
    rle = masks.validate({"size": [2, 3], "counts": masks.encode(np.eye(2, 3, dtype=bool))["counts"]})
    parse, seen = masks._parse, []
    monkeypatch.setattr(masks, "_parse", lambda text: seen.append(text) or parse(text))
    assert masks.area(rle) == 2 and masks.validate(rle, (2, 3)) is rle
    assert masks.intersection_area(rle, rle) == 2 and masks.union([rle], (2, 3)) == rle
    assert masks.box_of(rle) == (0, 0, 2, 2) and seen == []
    assert masks.area(dict(rle)) == 2 and len(seen) == 1  # a plain dict has no proof
    rle["counts"] = "5"
    for work in (masks.validate, masks.area, masks.box_of, lambda r: masks.intersection_area(r, r)):
        with pytest.raises(InputError, match="covers 5"):
            work(rle)
    grown = masks.empty(2, 3)
    grown["size"][0] = 3
    with pytest.raises(InputError, match="covers 6"):
        masks.area(grown)
    cleared = masks.empty(2, 3)
    del cleared["size"]
    with pytest.raises(InputError, match="size and counts"):
        masks.area(cleared)


def test_a_checked_mask_is_a_plain_dict_to_everyone_else():
    rle = masks.encode(np.ones((2, 3), bool))
    assert json.loads(json.dumps(rle)) == rle == {"size": [2, 3], "counts": rle["counts"]}
    for copied in (pickle.loads(pickle.dumps(rle)), copy.copy(rle), copy.deepcopy(rle)):
        assert type(copied) is dict and copied == rle
