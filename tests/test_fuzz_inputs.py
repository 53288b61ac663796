"""Files from elsewhere: whatever they hold, only InputError comes out. The targets of tests/fuzz run here too."""

from __future__ import annotations

import json
import math
import pickle
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uniresxx.data.readers.files import load_json
from uniresxx.data.readers.pickles import plain_data
from uniresxx.errors import InputError
from uniresxx.imaging import masks

FUZZ = Path(__file__).resolve().parent / "fuzz"
TARGETS = sorted(path.stem for path in FUZZ.glob("fuzz_*.py"))
quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def target(name):
    spec = spec_from_file_location(name, FUZZ / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def targets():
    return {name: target(name) for name in TARGETS}


@st.composite
def spoilt(draw, seeds):
    """A seed with some bytes changed, cut out, put in or repeated."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        new = draw(
            st.binary(max_size=5) | st.sampled_from([b"\xff" * 4, b"0" * 20, b"-", b"null", b"[", b"NaN"])
        )
        data[at : at + draw(st.integers(0, 6))] = new
    return bytes(data)


def test_every_kind_has_a_target():
    assert {"fuzz_rle", "fuzz_polygons", "fuzz_json", "fuzz_pickle", "fuzz_photo"} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_good_input(targets, name):
    for seed in targets[name].seeds():
        targets[name].check(seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(quick, max_examples=120)
@given(data=st.data())
def test_targets_find_nothing(targets, name, data):
    targets[name].check(data.draw(st.binary(max_size=200) | spoilt(targets[name].seeds())))


def test_targets_would_find_something(targets, monkeypatch):
    monkeypatch.setattr(masks, "area", lambda rle: 1)
    with pytest.raises(AssertionError):
        for seed in targets["fuzz_rle"].seeds():
            targets["fuzz_rle"].check(seed)
    assert "atheris" not in sys.modules


# ---- values that byte mutation seldom reaches

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([2**63, 10**30]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner)
    ),
    max_leaves=8,
)
NUMBERS = st.floats() | st.integers() | st.integers(-40, 80) | st.sampled_from([1e300, -1e300, 2**64, 1e-300])


@quick
@given(JUNK)
def test_any_json_as_a_segmentation(value):
    for work in (lambda: masks.from_coco(value, 20, 30), lambda: masks.validate(value)):
        try:
            rle = work()
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            assert masks.validate(rle) == rle


@quick
@given(st.lists(st.lists(NUMBERS, max_size=12), max_size=5))
def test_any_numbers_as_polygons(polygons):
    try:
        rle = masks.from_coco(polygons, 20, 30)
    except InputError:
        return
    flat = [number for polygon in polygons for number in polygon]
    assert all(math.isfinite(number) and -30 <= number <= 60 for number in flat)
    assert all(len(polygon) % 2 == 0 for polygon in polygons) or all(map(np.isscalar, polygons))
    assert masks.validate(rle, (20, 30)) == rle


@pytest.mark.parametrize(
    ("polygons", "word"),
    [
        ([[0, 0, 9, 0, 9]], "even"),
        ([[0, 0, 9, 0, 9, float("nan")]], "outside"),
        ([[0, 0, 9, 0, 9, float("inf")]], "outside"),
        ([[0, 0, 9, 0, 9, 10**400]], "numbers"),
        ([["0", "0", "9", "0", "9", "9"]], "numbers"),
        ([[[0, 0], [9, 0], [9, 9]]], "even"),
        ([[0, 0, 9, 0, None, 9]], "numbers"),
        ([[True, False, True, True, False, False]], "numbers"),
    ],
)
def test_each_bad_polygon_says_why(polygons, word):
    with pytest.raises(InputError, match=word):
        masks.from_coco(polygons, 20, 30)


def test_corners_in_one_place_count_too(monkeypatch):
    monkeypatch.setattr(masks, "MAX_POLYGON_STEPS", 10_000)
    with pytest.raises(InputError, match="over the cap"):
        masks.from_coco([[5.0] * 30_000], 20, 30)
    assert masks.from_coco([[5.0] * 3_000], 20, 30) == masks.empty(20, 30)


def test_thousands_of_polygons_take_linear_time():
    """One after another, each part would walk all that is merged already."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 990, (8_000, 2))
    triangles = [[x, y, x + 4, y, x, y + 4] for x, y in corners.tolist()]
    rle = masks.from_polygons(triangles, 1000, 1000)
    expected = (
        masks.from_polygons(triangles[:4_000], 1000, 1000),
        masks.from_polygons(triangles[4_000:], 1000, 1000),
    )
    assert rle == masks.union(expected, (1000, 1000))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@quick
@given(value=PLAIN, protocol=st.integers(3, 5))
def test_plain_data_and_bytes_come_back(value, protocol):
    assert plain_data(pickle.dumps(value, protocol), "x") == value


@quick
@given(
    opcodes=st.lists(st.sampled_from([code.to_bytes() for code in range(256)]), max_size=40),
    tail=st.binary(max_size=9),
)
def test_any_opcodes_are_data_or_one_line(opcodes, tail):
    for data in (
        b"".join(opcodes) + tail + b".",
        b"\x80\x04" + b"".join(opcodes) + b".",
        b"](}" + b"".join(opcodes) + b".",
    ):
        try:
            value = plain_data(data, "x.p")
        except InputError as error:
            assert str(error).startswith("x.p: ") and str(error).isprintable()
        else:
            json.dumps(value, default=list)


@quick
@given(
    st.text(max_size=30) | JUNK.map(json.dumps) | st.text(alphabet='[]{}",:0123eE.-\\undNaI ', max_size=30)
)
def test_any_text_as_json(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("j") / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_json(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
