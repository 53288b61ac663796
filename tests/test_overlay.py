"""Overlays: colours of the photo kept, the rest dark, numbers on their masks, a panel each where masks meet."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.imaging.badges import Rectangle, pieces, place_beside, place_within
from uniresxx.imaging.insets import inset_side
from uniresxx.imaging.legend import Line, draw_lines, label_of, scores_of
from uniresxx.imaging.lettering import font_for, one_line, wrapped
from uniresxx.imaging.marking import (
    DARK,
    LARGEST_SIDE,
    PALETTE,
    SMALLEST_SIDE,
    VEIL,
    VEIL_SHARE,
    Lines,
    colour_of,
    drawn_size,
    grown,
    outline,
    scaled_mask,
    scaled_photo,
)
from uniresxx.imaging.overlay import Layer, draw_overlay
from uniresxx.imaging.panel import Mark, draw_panel, fits_together, tile
from uniresxx.imaging.shapes import shape_of


def grey(height, width, value=128):
    return np.full((height, width, 3), value, dtype=np.uint8)


def disc(height, width, y, x, radius):
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo_part(picture, photo):
    """The drawn photo without its frame and legend."""
    size = drawn_size(*photo.shape[:2])
    pad = Lines.at(size).reach
    return np.asarray(picture)[pad : pad + size[0], pad : pad + size[1]]


def veiled(pixels):
    return np.rint(pixels * (1 - VEIL_SHARE) + np.array(VEIL) * VEIL_SHARE).astype(np.uint8)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (64, 64), (480, 640), (2, 5), (319, 320), (2049, 7)]
)
def test_any_size_is_drawn_within_bounds(size):
    layers = [
        Layer("the whole picture", np.ones(size, dtype=bool), 0.5),
        Layer("nothing", np.zeros(size, dtype=bool)),
        Layer("one pixel", np.eye(1, size[0] * size[1], dtype=bool).reshape(size)),
        Layer("no", None),
    ]
    for shown in (layers, layers[:2], layers[2:]):
        picture = draw_overlay(grey(*size), shown)
        assert picture.mode == "RGB"
        assert 320 <= picture.width <= LARGEST_SIDE and max(picture.size) > SMALLEST_SIDE * 2 // 3


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_drawn_size_keeps_the_shape(height, width):
    y, x = drawn_size(height, width)
    assert min(y, x) >= 1 and SMALLEST_SIDE <= max(y, x) <= LARGEST_SIDE - 2 * Lines.at((y, x)).reach
    assert abs(y / max(y, x) - height / max(height, width)) <= 1 / max(y, x)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_reduced_mask_keeps_every_touched_pixel(seed, y, x, to_y, to_x):
    to_y, to_x = min(y, to_y), min(x, to_x)
    mask = np.random.default_rng(seed).random((y, x)) < 0.2
    small = scaled_mask(mask, (to_y, to_x))
    rows, columns = (np.arange(to_y + 1) * y / to_y).astype(int), (np.arange(to_x + 1) * x / to_x).astype(int)
    for i in range(to_y):
        for j in range(to_x):
            assert small[i, j] == mask[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9), st.integers(1, 9), st.integers(1, 9), st.integers(9, 40), st.integers(9, 40))
def test_enlarged_mask_covers_the_pixels_of_an_enlarged_photo(seed, y, x, to_y, to_x):
    mask = np.random.default_rng(seed).random((y, x)) < 0.5
    photo = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    assert np.array_equal(
        scaled_mask(mask, (to_y, to_x)), scaled_photo(photo, (to_y, to_x), True)[..., 0] > 0
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9), st.integers(1, 30), st.integers(1, 30))
def test_a_kept_mask_is_the_mask(seed, y, x):
    rng = np.random.default_rng(seed)
    mask = rng.random((y, x)) < rng.choice([0.02, 0.5])
    shape = shape_of(mask)
    assert (shape is None) == (not mask.any())
    if shape is not None:
        assert np.array_equal(shape.at((y, x)), mask)
        assert np.array_equal(shape.at((3 * y, 3 * x)), mask.repeat(3, 0).repeat(3, 1))
        if shape.window is not None:
            side = shape.window.mask.shape[0]
            part = (
                slice(shape.window.top, shape.window.top + side),
                slice(shape.window.left, shape.window.left + side),
            )
            assert np.array_equal(shape.window.mask, mask[part]) and shape.window.mask.sum() == mask.sum()


@pytest.mark.parametrize("photo", [noise(600, 700), noise(128, 128)], ids=["photo", "scene"])
def test_the_mask_keeps_its_colours_and_the_rest_is_dark(photo):
    height, width = photo.shape[:2]
    mask = disc(height, width, height / 2, width / 2, height / 4)
    drawn = photo_part(draw_overlay(photo, [Layer("disc", mask)]), photo)
    size = drawn.shape[:2]
    inside, pixels = scaled_mask(mask, size), scaled_photo(photo, size, True)
    bright, dark = outline(inside, Lines.at(size))
    assert np.array_equal(drawn[inside], pixels[inside])
    assert (drawn[bright] == PALETTE[0]).all() and (drawn[dark] == DARK).all()
    outside = ~(inside | bright | dark)
    assert np.array_equal(drawn[outside], veiled(pixels[outside]))


def test_the_outline_lies_around_the_mask_and_in_its_holes():
    mask = disc(60, 60, 30, 30, 20) & ~disc(60, 60, 30, 30, 8)
    bright, dark = outline(mask, Lines(2, 1))
    assert not (mask & (bright | dark)).any() and not (bright & dark).any()
    assert np.array_equal(mask | bright, grown(mask, 2)) and np.array_equal(
        mask | bright | dark, grown(mask, 3)
    )
    assert bright[30, 23] and dark[30, 24] is not None and bright[30, 9] and dark[30, 7]


def test_a_mask_at_the_border_has_its_outline_in_the_frame():
    photo = noise(600, 600)
    drawn = np.asarray(draw_overlay(photo, [Layer("all", np.ones((600, 600), dtype=bool))]))
    assert np.array_equal(photo_part(drawn, photo), photo)
    assert (drawn[1:3, 3:600] == PALETTE[0]).all() and (drawn[3:600, 1:3] == PALETTE[0]).all()


def test_where_nothing_is_found_the_photo_is_as_it_was():
    photo = noise(600, 600)
    for layers in (
        [],
        [Layer("cat", None)],
        [Layer("cat", np.zeros((600, 600), dtype=bool)), Layer("dog", None)],
    ):
        assert np.array_equal(photo_part(draw_overlay(photo, layers), photo), photo)


def test_masks_apart_share_a_picture():
    photo = noise(600, 600)
    masks = [disc(600, 600, 150, 150, 100), disc(600, 600, 150, 450, 100), disc(600, 600, 450, 300, 120)]
    picture = draw_overlay(photo, [Layer(str(k), mask) for k, mask in enumerate(masks)])
    drawn = photo_part(picture, photo)
    assert picture.width < 610
    for index, mask in enumerate(masks):
        assert (drawn[outline(mask, Lines.at((600, 600)))[0]] == PALETTE[index]).all()
        badge = mask & ~np.all(drawn == photo, axis=2)
        box = Rectangle.around(badge)
        assert mask[box.part].all() and box.width < 25  # nothing but the number is on the mask
        assert (drawn[badge] == PALETTE[index]).all(axis=1).mean() > 0.5


@pytest.mark.parametrize("gap", [-5, 0, 2, 20])
def test_phrases_that_meet_have_a_picture_each(gap):
    photo = noise(600, 600)
    left, right = np.zeros((2, 600, 600), dtype=bool)
    left[100:500, 100:300], right[100:500, 300 + gap : 500] = True, True
    picture = draw_overlay(photo, [Layer("left", left), Layer("right", right)])
    together = picture.width < 700
    assert together == (gap == 20)
    for mask in () if together else (left, right):
        alone = np.asarray(draw_overlay(photo, [Layer("x", mask)]))[:600, :600]
        drawn = np.asarray(picture)
        x = 0 if mask is left else drawn.shape[1] - 606
        assert np.array_equal(drawn[:600, x : x + 600], alone) or mask is right  # another colour


def test_more_than_six_phrases_have_a_picture_each():
    masks = [disc(600, 600, 80 + 180 * (k // 4), 80 + 140 * (k % 4), 40) for k in range(8)]
    six, seven = (
        draw_overlay(noise(600, 600), [Layer(str(k), m) for k, m in enumerate(masks[:n])]) for n in (6, 7)
    )
    assert six.width == 606 and seven.width > 1500
    one_phrase = draw_overlay(noise(600, 600), [Layer("discs", mask) for mask in masks])
    assert one_phrase.width == 606  # layers of one phrase share its picture


def test_equal_lines_are_merged():
    photo = noise(600, 600)
    apart = [disc(600, 600, 150, 150, 100), disc(600, 600, 150, 450, 100)]
    one = draw_overlay(photo, [Layer("cup", apart[0], 0.5)])
    assert draw_overlay(photo, [Layer("cup", apart[0], 0.5), Layer("cup ", apart[0], 0.5)]).size == one.size
    assert draw_overlay(photo, [Layer("cup", mask, 0.5) for mask in apart]).size == one.size
    assert draw_overlay(photo, [Layer("a cat", None)] * 9).size == one.size
    differ = draw_overlay(
        photo, [Layer("cup", apart[0]), Layer("cup", None), Layer("cup", apart[1], note="truth")]
    )
    assert differ.height > one.height + 30


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


@pytest.mark.parametrize(
    ("numbers", "label"),
    [([1], "1"), ([2, 3], "2, 3"), ([1, 2, 3, 5], "1-3, 5"), (list(range(1, 41, 2)), "1, … 39")],
)
def test_numbers_are_few_letters(numbers, label):
    assert label_of(numbers) == label


def test_scores_of_many_masks_are_a_range():
    assert scores_of([]) == "" and scores_of([0.8312]) == "0.83"
    assert scores_of([0.5, 0.25]) == "0.50, 0.25" and scores_of([0.9, 0.1, 0.5, 0.3]) == "0.10 to 0.90"


def test_a_line_without_a_mask_has_no_colour():
    """The legend shows none of the palette's colours for what is not there."""
    for mask in (None, np.zeros((400, 400), dtype=bool)):
        drawn = np.asarray(draw_overlay(grey(400, 400), [Layer("blue cat", mask)]))
        assert not {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()} & set(PALETTE)


def test_the_score_stays_within_the_width():
    for width in (120, 160, 320):
        lines = [
            Line("the left wheel of the red car", "0.83 truth", "12", PALETTE[0]),
            Line("x", "not there"),
        ]
        drawn = np.asarray(draw_lines(lines, width, 16))
        assert drawn.shape[1] == width and (drawn[:, -4:] == 255).all()


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
    "text",
    [
        "größte Tür – 3 × 2 €",
        "x" * 5000,
        "左の車輪",
        "🚗 car",
        "a\nb\t\x1b[31mred",
        "",
        "שלום",
        "[SEG] <image>",
    ],
)
def test_any_text_can_be_a_legend(text):
    draw_overlay(
        grey(20, 20), [Layer(text, None), Layer(text, np.ones((20, 20), dtype=bool), 1.0)], title=text
    )


def test_one_line_has_no_control_characters():
    assert one_line("a\nb\t\x1b[31m  c\x00") == "a b �[31m c�"
    assert len(one_line("y" * 1000)) == 400


# ---- numbers and zoomed parts


def test_a_number_lies_in_a_large_piece_and_beside_a_small_one():
    large, small = disc(400, 400, 200, 200, 80), disc(400, 400, 100, 100, 8)
    spot = place_within(large, 20, 18, [])
    assert spot is not None and large[spot.part].all() and abs(spot.middle[0] - 200) < 8
    assert place_within(large, 20, 18, [spot]) is None and place_within(small, 20, 18, []) is None
    for y, x in ((100, 100), (2, 2), (397, 397), (2, 397)):
        mask = disc(400, 400, y, x, 8)
        beside = place_beside(Rectangle.around(mask), 20, 18, 3, [], mask)
        assert not mask[beside.part].any() and mask[beside.part].shape == (18, 20)


def test_numbers_beside_small_masks_never_lie_over_one_another():
    taken, masks = [], disc(300, 300, 150, 150, 6)
    for _ in range(9):
        taken.append(place_beside(Rectangle.around(masks), 20, 18, 3, taken, masks))
    assert not any(a.meets(b) for i, a in enumerate(taken) for b in taken[:i])


def test_each_large_piece_has_the_number():
    mask = disc(400, 400, 100, 100, 50) | disc(400, 400, 300, 300, 40) | disc(400, 400, 300, 60, 5)
    found = pieces(mask)
    assert len(found) == 2 and found[0].sum() > found[1].sum()
    assert found[0][100, 100] and found[1][300, 300] and not (found[0] & found[1]).any()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (128, 128), (3000, 4000)])
def test_a_small_part_is_shown_zoomed_in_its_own_pixels(height, width):
    photo = np.zeros((height, width, 3), dtype=np.uint8)
    photo[:] = (20, 200, 20)
    mask = disc(height, width, height * 0.3, width * 0.7, max(1, height * 0.012))
    photo[mask] = (250, 10, 250)
    shape, size = shape_of(mask), drawn_size(height, width)
    assert shape is not None and inset_side(shape, (height, width), size)
    drawn = np.asarray(draw_panel(photo, [Mark(shape, PALETTE[0])], size))
    target = (drawn == (250, 10, 250)).all(axis=2)
    assert target.sum() > 2 * shape.at(size).sum()  # itself, and larger again in the zoomed picture


def test_what_is_large_or_long_is_not_zoomed():
    for mask in (disc(480, 640, 240, 320, 60), np.eye(480, 640, dtype=bool)):
        shape = shape_of(mask)
        assert shape is not None and inset_side(shape, (480, 640), (480, 640)) == 0


def test_where_the_corners_are_needed_small_parts_have_a_picture_of_their_own():
    corners = np.zeros((480, 640), dtype=bool)
    corners[:180, :250] = corners[-180:, -250:] = corners[:180, -250:] = corners[-180:, :250] = True
    small = disc(480, 640, 240, 320, 5)
    marks = [Mark(shape, colour_of(k)) for k, m in enumerate((corners, small)) if (shape := shape_of(m))]
    assert not fits_together(marks, (480, 640), (480, 640))
    assert fits_together(marks[:1], (480, 640), (480, 640)) and fits_together(
        marks[1:], (480, 640), (480, 640)
    )
    assert draw_overlay(noise(480, 640), [Layer("corners", corners), Layer("dot", small)]).width > 1000


def test_a_tile_fits_its_place():
    for size in ((1, 1), (3, 900), (480, 640), (128, 128)):
        for mask in (None, np.ones(size, dtype=bool), np.zeros(size, dtype=bool)):
            drawn = tile(grey(*size), mask, PALETTE[1], (240, 320))
            assert drawn.width <= 320 and drawn.height <= 240 and (drawn.width == 320 or drawn.height == 240)


def test_very_many_layers_are_counted():
    mask = np.ones((30, 30), dtype=bool)
    few = draw_overlay(grey(30, 30), [Layer(f"{k}", mask) for k in range(41)])
    many = draw_overlay(grey(30, 30), [Layer(f"{k}", mask) for k in range(300)])
    assert few.size == many.size and many.width <= LARGEST_SIDE


def test_fifty_megapixels_without_giant_copies():
    photo = np.zeros((5000, 10000, 3), dtype=np.uint8)
    mask = np.zeros((5000, 10000), dtype=bool)
    mask[1000:4000, 2000:9000] = True
    tracemalloc.start()
    draw_overlay(photo, [Layer("a", mask), Layer("b", mask), Layer("c", None)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6, peak  # the photo itself is 150 MB
