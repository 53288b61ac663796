"""Outlines and run lengths of masks: exact without a tolerance, within it otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from uniresxx.annotations.outlines import one_ring, regions, simplify
from uniresxx.annotations.runs import brush_code, run_lengths
from uniresxx.data.own.shapes import decode_brush
from uniresxx.imaging import masks

small_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
tolerances = st.sampled_from((0.25, 0.75, 1.0, 1.5, 3.0))


@st.composite
def blobs(draw):
    """Masks with smooth outlines, several regions and holes."""
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    noise = np.random.default_rng(draw(st.integers(0, 10_000))).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, draw(st.sampled_from((1.0, 2.0, 4.0))))
    return smooth > np.quantile(smooth, draw(st.sampled_from((0.2, 0.5, 0.8))))


def filled(ring, shape):
    return masks.decode(masks.from_polygons([ring.ravel()], *shape))


def all_rings(found):
    return [ring for region in found for ring in (region.outer, *region.holes)]


@given(st.one_of(small_masks, blobs()))
def test_outlines_give_the_mask_back(mask):
    found = regions(mask)
    assert len(found) == ndimage.label(mask)[1]
    again = np.zeros_like(mask)
    for ring in all_rings(found):
        again ^= filled(ring, mask.shape)
    np.testing.assert_array_equal(again, mask)
    if found:
        np.testing.assert_array_equal(filled(one_ring(found), mask.shape), mask)


@given(st.one_of(small_masks, blobs()))
def test_a_region_has_its_own_holes(mask):
    labels, count = ndimage.label(mask)
    for number, region in enumerate(regions(mask), 1):
        own = filled(region.outer, mask.shape)
        for hole in region.holes:
            assert (own & filled(hole, mask.shape) == filled(hole, mask.shape)).all()
            own &= ~filled(hole, mask.shape)
        np.testing.assert_array_equal(own, labels == number)
    assert count == len(regions(mask))


@given(blobs(), tolerances)
def test_a_simplified_outline_changes_only_pixels_near_the_outline(mask, tolerance):
    """A pixel whose centre is farther than the tolerance from the outline stays on its side.

    Half a pixel's diagonal more, because pycocotools rounds corners to a fifth of a pixel and draws along pixels.
    """
    exact, simple = regions(mask), regions(mask, tolerance)
    assert len(simple) == len(exact)
    again = np.zeros_like(mask)
    for before, after in zip(all_rings(exact), all_rings(simple), strict=True):
        assert len(after) <= len(before) and len(after) >= 3
        again ^= filled(after, mask.shape)
    padded = np.pad(mask, 1)
    depth = np.where(padded, ndimage.distance_transform_edt(padded), ndimage.distance_transform_edt(~padded))
    centre_to_outline = depth[1:-1, 1:-1] - np.sqrt(
        0.5
    )  # at least: the outline is half a pixel before the next centre
    assert (centre_to_outline[again != mask] <= tolerance + np.sqrt(0.5)).all()


@given(blobs(), tolerances)
def test_a_corner_that_is_left_out_is_near_the_new_outline(mask, tolerance):
    for ring in all_rings(regions(mask)):
        simple = simplify(ring, tolerance)
        assert {*map(tuple, simple)} <= {*map(tuple, ring)}
        if len(simple) == len(ring):
            continue
        start, along = simple, np.roll(simple, -1, axis=0) - simple
        for corner in ring:
            share = np.clip(((corner - start) * along).sum(axis=1) / (along**2).sum(axis=1), 0, 1)
            assert np.hypot(*(corner - start - share[:, None] * along).T).min() <= tolerance + 1e-9


def test_a_tolerance_keeps_large_masks_nearly_whole():
    ys, xs = np.mgrid[:300, :400]
    disc = (ys - 150) ** 2 + (xs - 200) ** 2 < 120**2
    corners = []
    for tolerance, least in ((0.75, 0.995), (1.0, 0.99), (2.0, 0.98)):
        [region] = regions(disc, tolerance)
        again = filled(region.outer, disc.shape)
        assert (again & disc).sum() >= least * (again | disc).sum()
        corners.append(len(region.outer))
    [exact] = regions(disc)
    assert len(exact.outer) > corners[0] > corners[1] > corners[2]


def test_a_line_of_one_pixel_keeps_its_area():
    mask = np.zeros((5, 30), dtype=bool)
    mask[2, 3:27] = True
    [region] = regions(mask, 2.0)
    np.testing.assert_array_equal(filled(region.outer, mask.shape), mask)


def test_pixels_that_touch_at_a_corner_are_two_regions():
    assert len(regions(np.eye(2, dtype=bool))) == len(regions(~np.eye(2, dtype=bool))) == 2
    ring = np.ones((4, 4), dtype=bool)
    ring[1, 1] = ring[2, 2] = False  # two holes that touch at a corner are one
    [region] = regions(ring)
    assert len(region.holes) == 1


def test_nothing_has_no_region():
    assert regions(np.zeros((3, 4), dtype=bool)) == [] == regions(np.zeros((3, 4), dtype=bool), 1.0)


@given(small_masks)
def test_runs_and_brush_codes_give_the_pixels_back(mask):
    runs = run_lengths(mask.ravel())
    np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2 == 1, runs), mask.ravel())
    assert all(runs[1:])
    code = brush_code(mask)
    assert all(0 <= byte <= 255 for byte in code)
    values = decode_brush(code, 4 * mask.size).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(values, np.repeat(mask[..., None], 4, axis=2) * np.uint8(255))


@pytest.mark.parametrize("pixels", [1, 2, 4, 5, 63, 64, 65, 16384, 16385, 40000])
def test_brush_codes_of_runs_of_every_length(pixels):
    mask = np.zeros((1, 50000), dtype=bool)
    mask[:, 7 : 7 + pixels] = True
    values = decode_brush(brush_code(mask), 4 * mask.size).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(values[..., 3] > 0, mask)
