"""One photo with the masks that are marked on it together: outlines, numbers, zoomed small parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from uniresxx.imaging.badges import (
    Rectangle,
    chip_size,
    draw_absent,
    draw_chip,
    pieces,
    place_beside,
    place_within,
)
from uniresxx.imaging.insets import FRAME, Inset, draw_inset, free_corner, inset_side, located, zoomed
from uniresxx.imaging.lettering import Colour
from uniresxx.imaging.marking import DARK, SHARP_SIDE, Lines, Size, fitted_size, grown, mark, scaled_photo
from uniresxx.imaging.shapes import Shape, shape_of


@dataclass(frozen=True, slots=True)
class Mark:
    """A mask to be marked, its colour and what its badge says, "" for no badge."""

    shape: Shape
    colour: Colour
    label: str = ""


def fits_together(marks: Sequence[Mark], photo_size: Size, size: Size) -> bool:
    """Whether masks are far enough apart to be marked on one photo drawn at `size`, with room to zoom small ones.

    Masks of the same colour belong to one phrase and may touch.
    """
    masks: dict[Colour, np.ndarray] = {}
    for item in marks:
        mask = item.shape.at(size)
        masks[item.colour] = masks[item.colour] | mask if item.colour in masks else mask
    reach, seen = Lines.at(size).reach, np.zeros(size, dtype=bool)
    for mask in masks.values():
        if np.any(grown(mask, reach) & seen):
            return False
        seen |= mask
    blank = np.zeros((*size, 3), dtype=np.uint8)
    return len(insets_of(marks, photo_size, size, blank, seen)) == sum(
        inset_side(item.shape, photo_size, size) > 0 for item in marks
    )


def draw_panel(photo: np.ndarray, marks: Sequence[Mark], size: Size, letters: int = 13) -> Image.Image:
    """The photo at `size` in a narrow dark frame, which holds the outlines at its border.

    Args:
        photo: uint8 (y, x, 3) RGB.
        marks: without any, the photo is shown as it is.
        size: (height, width) of the drawn photo without its frame.
        letters: height of the numbers in pixels.
    """
    lines = Lines.at(size)
    pad = lines.reach
    canvas = np.empty((size[0] + 2 * pad, size[1] + 2 * pad, 3), dtype=np.uint8)
    canvas[:] = DARK
    canvas[pad:-pad, pad:-pad] = scaled_photo(photo, size, sharp=max(photo.shape[:2]) <= SHARP_SIDE)
    if not marks:
        return Image.fromarray(canvas)
    masks = [np.pad(item.shape.at(size), pad) for item in marks]
    mark(canvas, masks, [item.colour for item in marks], lines)
    union = np.logical_or.reduce(masks)
    insets = insets_of(marks, photo.shape[:2], size, canvas, union)
    picture = Image.fromarray(canvas)
    numbers = _Numbers(picture, letters, grown(union, pad), [inset.place for inset in insets.values()])
    for index, inset in insets.items():
        item, side = marks[index], inset.place.width - 2 * FRAME
        content = zoomed(photo, inset.window, side, item.colour, lines)
        draw_inset(picture, inset, content, numbers.needed)
        numbers.draw_on_inset(item, inset)
    for index, (item, mask) in enumerate(zip(marks, masks, strict=True)):
        if index in insets:
            numbers.draw_beside(item, insets[index].target, 1)
        elif item.label:
            for piece in pieces(mask):
                numbers.draw(item, piece, pad + 1)
    return picture


def tile(photo: np.ndarray, mask: np.ndarray | None, colour: Colour, limit: Size) -> Image.Image:
    """The photo and one mask as large as `limit` (height, width) allows; a sign where the mask is None or empty."""
    shape = None if mask is None else shape_of(mask)
    pad = Lines.at(limit).reach
    height, width = photo.shape[:2]
    size = fitted_size(height, width, (limit[0] - 2 * pad, limit[1] - 2 * pad))
    picture = draw_panel(photo, [] if shape is None else [Mark(shape, colour)], size)
    if shape is None:
        sign = min(limit) // 9
        draw_absent(ImageDraw.Draw(picture), (pad + sign, pad + sign), sign, colour)
    return picture


def insets_of(
    marks: Sequence[Mark], photo_size: Size, size: Size, canvas: np.ndarray, union: np.ndarray
) -> dict[int, Inset]:
    """The zoomed pictures that find room, by the index of their mark.

    Args:
        marks: all masks of the picture.
        photo_size: of the photo.
        size: of the drawn photo.
        canvas: uint8 (y, x, 3), the drawn photo, with or without its frame.
        union: bool (y, x), all masks on the canvas.
    """
    found: dict[int, Inset] = {}
    pad = (union.shape[0] - size[0]) // 2
    for index, item in enumerate(marks):
        side = inset_side(item.shape, photo_size, size)
        window = item.shape.window
        if side and window is not None:
            target = located(window, photo_size, size).moved(pad, pad)
            taken = [inset.place for inset in found.values()] + [inset.target for inset in found.values()]
            place = free_corner(target, side, canvas, union, taken)
            if place is not None:
                found[index] = Inset(window, target, place)
    return found


@dataclass
class _Numbers:
    """The badges of a picture, none over another."""

    picture: Image.Image
    letters: int
    needed: np.ndarray  # bool (y, x): masks and their outlines, which badges beside a mask leave free
    taken: list[Rectangle] = field(default_factory=list)

    def draw(self, item: Mark, piece: np.ndarray, gap: int) -> None:
        """In the piece of a mask where it is large enough, else beside it."""
        spot = place_within(piece, *chip_size(item.label, self.letters), self.taken)
        if spot is None:
            self.draw_beside(item, Rectangle.around(piece), gap)
        else:
            self._chip(item, spot)

    def draw_beside(self, item: Mark, box: Rectangle, gap: int) -> None:
        """Next to a box."""
        if item.label:
            size = chip_size(item.label, self.letters)
            self._chip(item, place_beside(box, *size, gap, self.taken, self.needed))

    def draw_on_inset(self, item: Mark, inset: Inset) -> None:
        """In the upper left corner of a zoomed picture."""
        if item.label:
            corner = inset.place.left + FRAME, inset.place.top + FRAME
            self._chip(item, Rectangle(*corner, *chip_size(item.label, self.letters)))

    def _chip(self, item: Mark, spot: Rectangle) -> None:
        draw_chip(ImageDraw.Draw(self.picture), spot, item.label, item.colour, self.letters)
        self.taken.append(spot)
