"""The pixels-only proposer: finds what is drawn, knows no truth, never breaks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uniresxx.data.scenes import scene_record
from uniresxx.imaging.geometry import box_iou
from uniresxx.model.regions.classical import grid_boxes, propose, random_boxes, shuffled_boxes


def recall(proposed: np.ndarray, truth: np.ndarray, iou: float = 0.5) -> tuple[int, int]:
    """(truth boxes met by a proposal, truth boxes)."""
    return int((box_iou(truth, proposed).max(axis=1, initial=0.0) >= iou).sum()), len(truth)


@pytest.mark.parametrize(("preset", "objects", "parts"), [("scenes_easy", 0.85, 0.75), ("scenes", 0.5, 0.3)])
def test_recall_on_scenes(preset: str, objects: float, parts: float) -> None:
    met = {"object": [0, 0], "part": [0, 0]}
    for index in range(12):
        record = scene_record(preset, "val", index)
        found = propose(record.pixels, 12, 24)
        for kind, boxes in (("object", found.objects), ("part", found.parts)):
            hit, total = recall(boxes, record.boxes[kind])
            met[kind] = [met[kind][0] + hit, met[kind][1] + total]
    assert met["object"][0] / met["object"][1] >= objects
    assert met["part"][0] / met["part"][1] >= parts


@given(hnp.arrays(np.uint8, st.sampled_from([(8, 8, 3), (33, 33, 3), (130, 130, 3)])))
@settings(deadline=None, max_examples=20)
def test_any_square_gives_few_valid_boxes(photo: np.ndarray) -> None:
    found = propose(photo, 5, 7)
    side = photo.shape[0]
    for boxes, most in ((found.objects, 5), (found.parts, 7)):
        assert boxes.shape[1:] == (4,) and len(boxes) <= most and boxes.dtype == np.float32
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all() and (boxes <= side).all()
        clash = box_iou(boxes, boxes) - np.eye(len(boxes))
        assert (clash <= 0.7).all()


def test_the_same_pixels_give_the_same_boxes_and_a_flat_picture_none() -> None:
    photo = scene_record("scenes_easy", "val", 0).pixels
    first, second = propose(photo, 12, 24), propose(photo.copy(), 12, 24)
    assert np.array_equal(first.objects, second.objects) and np.array_equal(first.parts, second.parts)
    flat = propose(np.full((64, 64, 3), 99, dtype=np.uint8), 12, 24)
    assert len(flat.objects) == len(flat.parts) == 0


def test_a_square_on_plain_ground_is_found() -> None:
    photo = np.full((64, 64, 3), 230, dtype=np.uint8)
    photo[20:40, 10:34] = (200, 30, 30)
    for boxes in (propose(photo, 4, 4).objects, propose(photo, 4, 4).parts):
        assert recall(boxes, np.array([[10.0, 20.0, 34.0, 40.0]]), 0.8) == (1, 1)


def test_controls_have_the_asked_number_of_boxes_inside_the_square() -> None:
    assert grid_boxes(64, 12).shape == random_boxes(64, 12, 0).shape == (12, 4)
    assert not np.array_equal(random_boxes(64, 12, 0), random_boxes(64, 12, 1))
    grid = grid_boxes(64, 24)
    assert np.isclose((grid[:, 2:] - grid[:, :2]).prod(axis=1).sum(), 64 * 64)  # no strip is left out
    boxes = random_boxes(64, 9, 3)
    moved = shuffled_boxes(boxes, 64, 5)
    np.testing.assert_allclose(moved[:, 2:] - moved[:, :2], boxes[:, 2:] - boxes[:, :2], atol=1e-3)
    assert (moved >= 0).all() and (moved <= 64).all() and not np.allclose(moved, boxes)
