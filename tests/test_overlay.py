"""Overlays: every size, colours apart for colour-blind people, a legend that names what is missing."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.imaging.overlay import (
    LARGEST_SIDE,
    PALETTE,
    SMALLEST_SIDE,
    Layer,
    colour_of,
    draw_overlay,
    drawn_size,
    font_for,
    legend_text,
    one_line,
    resized_mask,
    wrapped,
)


def grey(height, width, value=128):
    return np.full((height, width, 3), value, dtype=np.uint8)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (64, 64), (480, 640), (2, 5), (319, 320), (2049, 7)]
)
def test_any_size_is_drawn_within_bounds(size):
    mask = np.ones(size, dtype=bool)
    layers = [
        Layer("the whole picture", mask, 0.5),
        Layer("nothing", np.zeros(size, dtype=bool)),
        Layer("no", None),
    ]
    picture = draw_overlay(grey(*size), layers)
    assert picture.mode == "RGB"
    assert SMALLEST_SIDE <= picture.width <= LARGEST_SIDE
    assert picture.height > drawn_size(*size)[0]


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_drawn_size_keeps_the_shape(height, width):
    y, x = drawn_size(height, width)
    assert min(y, x) >= 1 and SMALLEST_SIDE <= max(y, x) <= LARGEST_SIDE
    assert abs(y / max(y, x) - height / max(height, width)) <= 1 / max(y, x)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_reduced_mask_keeps_every_touched_pixel(seed, y, x, to_y, to_x):
    to_y, to_x = min(y, to_y), min(x, to_x)
    mask = np.random.default_rng(seed).random((y, x)) < 0.2
    small = resized_mask(mask, (to_y, to_x))
    rows, columns = (np.arange(to_y + 1) * y / to_y).astype(int), (np.arange(to_x + 1) * x / to_x).astype(int)
    for i in range(to_y):
        for j in range(to_x):
            assert small[i, j] == mask[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].any()


def test_colour_lands_on_the_mask_and_nowhere_else():
    mask = np.zeros((400, 400), dtype=bool)
    mask[100:200, 50:350] = True
    drawn = np.asarray(draw_overlay(grey(400, 400), [Layer("bar", mask)]))[:400, :400]
    expected = (np.array([128.0] * 3) * 0.55 + np.array(PALETTE[0]) * 0.45).astype(np.uint8)
    assert (drawn[110:190, 60:340] == expected).all()
    assert (drawn[100, 50:350] == PALETTE[0]).all()  # outline in full colour
    outside = np.pad(mask, 1)[1:-1, 1:-1].copy()
    outside[99:201, 49:351] = True  # one pixel of contrast line around
    assert (drawn[~outside] == 128).all()


def test_photo_is_not_changed_and_generators_work():
    photo = grey(330, 330)
    before = photo.copy()
    mask = np.zeros((330, 330), dtype=bool)
    mask[3:9, 3:9] = True
    one = draw_overlay(photo, (Layer(text, mask, 0.9) for text in ("a", "b")))
    two = draw_overlay(photo, [Layer(text, mask, 0.9) for text in ("a", "b")])
    assert (photo == before).all()
    assert np.array_equal(np.asarray(one), np.asarray(two))


def test_wrong_mask_size_is_named():
    with pytest.raises(ValueError, match=r"'cat' is \(3, 4\), the photo is \(4, 3\)"):
        draw_overlay(grey(4, 3), [Layer("cat", np.ones((3, 4), dtype=bool))])


def simulated(colour, matrix):
    """Machado et al. (2009), severity 1.0, applied in linear RGB."""
    linear = (np.array(colour) / 255.0) ** 2.2
    return 255 * np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        np.eye(3),
    ],
    ids=["protanopia", "deuteranopia", "tritanopia", "none"],
)
def test_palette_stays_apart_for_colour_blind_people(matrix):
    seen = [simulated(colour, matrix) for colour in PALETTE]
    nearest = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
    assert nearest > 25, nearest  # pure red against pure green scores about 0-20 under the first matrix's kin
    neighbours = min(np.linalg.norm(a - b) for a, b in pairwise(seen))
    assert neighbours > 60, neighbours


def test_colours_come_again_after_seven():
    assert colour_of(7) == colour_of(0) != colour_of(1)


def test_legend_names_what_is_not_there():
    assert legend_text(Layer("blue cat", None, None), 2) == "2  blue cat: not there"
    assert legend_text(Layer("blue cat", None, 0.4), 2) == "2  blue cat: not there"  # no score without a mask
    assert legend_text(Layer("left wheel", np.ones((1, 1), dtype=bool), 0.8312), None) == "left wheel  0.83"
    assert "not there" not in legend_text(Layer("x", np.ones((1, 1), dtype=bool)), 1)
    assert legend_text(Layer(" ", None), None).startswith("(no text)")


def test_absent_line_has_no_colour():
    """A legend line without a mask shows none of the palette's colours."""
    drawn = np.asarray(draw_overlay(grey(400, 400), [Layer("blue cat", None)]))
    colours = {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}
    assert not colours & set(PALETTE)
    with_mask = np.asarray(
        draw_overlay(grey(400, 400), [Layer("blue cat", np.zeros((400, 400), dtype=bool))])
    )
    assert PALETTE[0] in {tuple(pixel) for pixel in with_mask.reshape(-1, 3).tolist()}


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300), st.integers(20, 400))
def test_any_text_is_wrapped_within_the_width(text, width):
    line = one_line(text)
    font = font_for(line, 13)
    lines = wrapped(line, font, width)
    assert 1 <= len(lines) <= 3
    assert all(font.getlength(part) <= width or len(part) <= 1 for part in lines[:2])
    if not lines[-1].endswith("…"):
        assert "".join(lines).replace(" ", "") == line.replace(" ", "")


@pytest.mark.parametrize(
    "text", ["x" * 5000, "左の車輪", "🚗 car", "a\nb\t\x1b[31mred", "", "שלום", "[SEG] <image>"]
)
def test_any_text_can_be_a_legend(text):
    draw_overlay(
        grey(20, 20), [Layer(text, None), Layer(text, np.ones((20, 20), dtype=bool), 1.0)], title=text
    )


def test_one_line_has_no_control_characters():
    assert one_line("a\nb\t\x1b[31m  c\x00") == "a b �[31m c�"
    assert len(one_line("y" * 1000)) == 400


def test_numbers_of_equal_masks_are_all_visible():
    mask = np.zeros((400, 400), dtype=bool)
    mask[190:210, 150:250] = True
    drawn = np.asarray(draw_overlay(grey(400, 400), [Layer(name, mask) for name in "abcd"]))[:400]
    for colour in PALETTE[
        :4
    ]:  # a filled badge each: the outline on top alone has far fewer pixels in full colour
        assert (drawn == colour).all(axis=2).sum() > 60


def test_very_many_layers_are_counted():
    mask = np.ones((30, 30), dtype=bool)
    few = draw_overlay(grey(30, 30), [Layer("x", mask)] * 41)
    many = draw_overlay(grey(30, 30), [Layer("x", mask)] * 300)
    assert few.size == many.size


def test_fifty_megapixels_without_giant_copies():
    photo = np.zeros((5000, 10000, 3), dtype=np.uint8)
    mask = np.zeros((5000, 10000), dtype=bool)
    mask[1000:4000, 2000:9000] = True
    tracemalloc.start()
    draw_overlay(photo, [Layer("a", mask), Layer("b", mask), Layer("c", None)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6, peak  # the photo itself is 150 MB
