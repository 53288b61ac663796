"""The letterbox: boxes and masks go there and come back; any photo size, any logit resolution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniresxx.imaging.geometry import PADDING, Letterbox, box_iou

quick = settings(deadline=None, max_examples=120)
SIDES = st.integers(1, 300)
FRAMES = st.builds(Letterbox.fit, SIDES, SIDES, st.integers(1, 200))


@quick
@given(FRAMES)
def test_longest_side_fills_the_square_and_valid_is_the_inner_area(frame):
    assert max(frame.inner_height, frame.inner_width) == frame.side
    assert min(frame.inner_height, frame.inner_width) >= 1
    valid = frame.valid()
    assert valid.shape == (frame.side, frame.side) and valid.dtype == bool
    assert valid.sum() == frame.inner_height * frame.inner_width
    assert valid[: frame.inner_height, : frame.inner_width].all()
    ratio = frame.side / max(frame.height, frame.width)
    assert abs(frame.inner_height - max(1, frame.height * ratio)) <= 0.5
    assert abs(frame.inner_width - max(1, frame.width * ratio)) <= 0.5


@quick
@given(FRAMES, st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_boxes_come_back_exactly(frame, count, seed):
    random = np.random.default_rng(seed)
    boxes = random.uniform(-10, 400, (count, 4))
    np.testing.assert_allclose(frame.unboxes(frame.boxes(boxes)), boxes, rtol=1e-12, atol=1e-9)
    whole = np.array([[0, 0, frame.width, frame.height]])
    inner = [[0, 0, frame.inner_width, frame.inner_height]]
    np.testing.assert_allclose(frame.boxes(whole), inner, rtol=1e-12)
    assert frame.boxes(boxes.astype(np.float32)).dtype == np.float32


@quick
@given(FRAMES, st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_unmask_has_the_photo_size_for_any_resolution(frame, cells, seed):
    logits = np.random.default_rng(seed).normal(size=(2, cells, cells))
    back = frame.unmask_logits_many(logits)
    assert back.shape == (2, frame.height, frame.width) and back.dtype == bool
    assert np.array_equal(frame.unmask_logits(logits[1]), back[1])
    assert frame.unmask_logits_many(np.ones((1, cells, cells))).all()
    assert not frame.unmask_logits_many(-np.ones((1, cells, cells))).any()
    assert frame.unmask_logits_many(np.ones((0, cells, cells))).shape == (0, frame.height, frame.width)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 701), (4999, 7)])
@pytest.mark.parametrize("side", [1, 33, 128])
def test_extreme_photos(size, side):
    frame = Letterbox.fit(*size, side)
    square = frame.photo(np.full((*size, 3), 200, dtype=np.uint8))
    assert square.shape == (side, side, 3) and (square[frame.valid()] == 200).all()
    assert (square[~frame.valid()] == PADDING).all()
    dot = np.zeros(size, dtype=bool)
    dot[-1, -1] = True
    assert frame.mask(dot).any() and not frame.mask(dot)[~frame.valid()].any()
    assert frame.unmask_logits(np.where(frame.mask(np.ones(size, bool)), 1.0, -1.0)).all()


@quick
@given(FRAMES, st.integers(0, 2**32 - 1))
def test_no_target_vanishes_and_nothing_lands_on_padding(frame, seed):
    random = np.random.default_rng(seed)
    dot = np.zeros((frame.height, frame.width), dtype=bool)
    dot[random.integers(frame.height), random.integers(frame.width)] = True
    square = frame.mask(dot)
    assert square.any() and not square[~frame.valid()].any()
    assert not frame.mask(np.zeros_like(dot)).any()
    assert np.array_equal(frame.mask(np.ones_like(dot)), frame.valid())


@settings(deadline=None, max_examples=40)
@given(st.integers(60, 400), st.integers(60, 400), st.sampled_from([256, 320, 512]))
def test_a_mask_comes_back_nearly_whole(height, width, side):
    frame = Letterbox.fit(height, width, side)
    y, x = np.mgrid[:height, :width]
    disc = (y - 0.45 * height) ** 2 / (0.3 * height) ** 2 + (x - 0.55 * width) ** 2 / (0.3 * width) ** 2 < 1
    back = frame.unmask_logits(np.where(frame.mask(disc), 4.0, -4.0))
    assert (back & disc).sum() / (back | disc).sum() > 0.93


def test_without_resizing_the_inverse_is_exact():
    random = np.random.default_rng(0)
    for height, width in ((64, 64), (64, 41), (17, 64)):
        frame = Letterbox.fit(height, width, 64)
        mask = random.random((height, width)) > 0.5
        assert np.array_equal(frame.unmask_logits(np.where(frame.mask(mask), 1.0, -1.0)), mask)


@pytest.mark.parametrize("cells", [32, 64, 128])
def test_a_straight_edge_lands_where_geometry_says(cells):
    # logits that grow linearly with x are 0 at column 37.3 of the square, so at 37.3 * 300 / 128 of the photo
    frame = Letterbox.fit(200, 300, 128)
    centres = (np.arange(cells) + 0.5) * 128 / cells
    back = frame.unmask_logits(np.broadcast_to(centres - 37.3, (cells, cells)))
    edge = 37.3 * 300 / frame.inner_width
    expected = np.broadcast_to(np.arange(300) + 0.5 > edge, (200, 300))
    assert np.array_equal(back, expected)


@pytest.mark.parametrize(("cells", "size"), [(16, 50), (50, 16), (33, 97), (97, 33)])
def test_filter_is_that_of_pillow_where_nothing_is_padded(cells, size):
    logits = np.random.default_rng(1).normal(size=(cells, cells)).astype(np.float32)
    expected = np.asarray(Image.fromarray(logits).resize((size, size), Image.Resampling.BILINEAR))
    back = Letterbox.fit(size, size, 64).unmask_logits(logits)
    sure = np.abs(expected) > 1e-5
    assert np.array_equal(back[sure], (expected > 0)[sure])


def test_padding_is_ignored():
    frame = Letterbox.fit(30, 100, 128)
    logits = np.where(frame.valid(), 1.0, -1e6)
    assert frame.unmask_logits(logits).all()
    coarse = np.full((32, 32), -1e6)
    coarse[: -(-frame.inner_height // 4)] = 1.0
    assert frame.unmask_logits(coarse).all()


def test_wrong_shapes_are_named():
    frame = Letterbox.fit(30, 100, 128)
    with pytest.raises(ValueError, match=r"\(30, 100\)"):
        frame.mask(np.zeros((100, 30), bool))
    with pytest.raises(ValueError, match="square"):
        frame.unmask_logits(np.zeros((30, 31)))
    with pytest.raises(ValueError, match="at least 1"):
        Letterbox.fit(0, 5, 64)


CORNERS = st.tuples(st.integers(0, 9), st.integers(0, 9))
BOXES = st.lists(st.tuples(CORNERS, CORNERS), max_size=4)


@quick
@given(BOXES, BOXES)
def test_box_iou_counts_the_pixels_of_whole_boxes(first, second):
    def made(boxes):
        corners = [np.sort([a, b], axis=0).ravel() for a, b in boxes]
        return np.array(corners, np.float32).reshape(-1, 4)

    def filled(box):
        mask = np.zeros((9, 9), bool)
        mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        return mask

    a_N4, b_M4 = made(first), made(second)
    overlaps = box_iou(a_N4, b_M4)
    assert overlaps.shape == (len(a_N4), len(b_M4))
    for row, a in zip(overlaps, a_N4, strict=True):
        for value, b in zip(row, b_M4, strict=True):
            inter, union = (filled(a) & filled(b)).sum(), (filled(a) | filled(b)).sum()
            assert value == pytest.approx(inter / max(union, 1))
