"""A photo with masks marked on it: their colours stay, the rest is darkened, each has a double outline.

All of it is numpy on arrays at the size at which they are drawn. The outline lies outside the mask, a bright line
next to it and a dark one around that, so it is seen on any photo and no pixel of the mask is changed.

The colours of the bright line follow Okabe and Ito (2008), lighter where theirs are too dark for a darkened
photo; people with the common kinds of colour blindness tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image

from uniresxx.imaging.lettering import Colour

PALETTE = (
    (255, 168, 0),  # orange
    (72, 140, 255),  # blue
    (252, 240, 84),  # yellow
    (40, 200, 110),  # green
    (255, 100, 40),  # vermillion
    (160, 222, 255),  # sky blue
    (222, 124, 212),  # purple
)
VEIL, VEIL_SHARE = (20, 26, 38), 0.6  # the colour over the rest of the photo, and its share
DARK = (8, 10, 16)  # the outer line
SMALLEST_SIDE, LARGEST_SIDE = 512, 2048  # of the longest side of a drawn photo with its frame, pixels
SHARP_SIDE = 256  # photos up to here are enlarged with sharp pixels

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Lines:
    """Widths of the outline's two lines in pixels."""

    bright: int
    dark: int

    @classmethod
    def at(cls, size: Size) -> Lines:
        """The widths that suit a photo drawn at `size`."""
        longest = max(size)
        return cls(max(2, round(longest / 320)), max(1, round(longest / 640)))

    @property
    def reach(self) -> int:
        """How far the outline goes beyond the mask."""
        return self.bright + self.dark


def colour_of(index: int) -> Colour:
    """The colour of the index-th phrase, counted from 0; after seven the colours come again."""
    return PALETTE[index % len(PALETTE)]


def drawn_size(height: int, width: int, smallest: int = SMALLEST_SIDE, largest: int = LARGEST_SIDE) -> Size:
    """(height, width) at which a photo is drawn: enlarged by a whole factor, or reduced, or as it is.

    Args:
        height: of the photo.
        width: of the photo.
        smallest: the longest side is at least this where enlarging stays within `largest`.
        largest: the longest side is at most this, with the frame that holds the outlines at the border.
    """
    longest, largest = max(height, width), largest - 2 * Lines.at((largest, 1)).reach
    if longest > largest:
        return max(1, round(height * largest / longest)), max(1, round(width * largest / longest))
    factor = max(1, min(ceil(smallest / longest), largest // longest))
    return height * factor, width * factor


def fitted_size(height: int, width: int, limit: Size) -> Size:
    """The largest (height, width) of a photo's shape within `limit`."""
    scale = min(limit[0] / height, limit[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def scaled_photo(photo: np.ndarray, size: Size, sharp: bool) -> np.ndarray:
    """A writable copy of the photo, uint8 (y, x, 3), at `size`; `sharp`: enlarged pixels have sharp edges."""
    if photo.shape[:2] == size:
        return np.array(photo)
    if sharp and size[0] >= photo.shape[0] and size[1] >= photo.shape[1]:
        return _enlarged(_enlarged(photo, size[0], 0), size[1], 1)
    picture = Image.fromarray(np.ascontiguousarray(photo))
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS, reducing_gap=2.0))


def scaled_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """The mask at the drawn size. Reducing keeps all drawn pixels it touches: small parts stay visible."""
    mask = mask.astype(bool, copy=False)
    for axis, (now, then) in enumerate(zip(mask.shape, size, strict=True)):
        if then < now:
            mask = np.logical_or.reduceat(mask, np.arange(then) * now // then, axis=axis)
        elif then > now:
            mask = _enlarged(mask, then, axis)
    return mask


def _enlarged(pixels: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Pixels repeated along an axis, the nearest one for each place."""
    return np.take(pixels, (2 * np.arange(length) + 1) * pixels.shape[axis] // (2 * length), axis=axis)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) around the mask's pixels, the last two exclusive; None where it has none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask and what is near it: an octagon of `steps` pixels around each of its pixels."""
    for step in range(steps):
        padded = np.pad(mask, 1)
        if step % 2:  # with the corners
            padded = padded[:-2] | padded[1:-1] | padded[2:]
            mask = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
        else:
            mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def outline(mask: np.ndarray, lines: Lines) -> tuple[np.ndarray, np.ndarray]:
    """(bright, dark): the pixels of the two lines around a mask."""
    bright, dark = np.zeros_like(mask), np.zeros_like(mask)
    box = box_of(mask)
    if box is not None:
        top, left, bottom, right = box
        reach = lines.reach
        part = slice(max(0, top - reach), bottom + reach), slice(max(0, left - reach), right + reach)
        inside = mask[part]
        near = grown(inside, lines.bright)
        bright[part], dark[part] = near & ~inside, grown(near, lines.dark) & ~near
    return bright, dark


def mark(canvas: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[Colour], lines: Lines) -> None:
    """Darken the canvas (uint8 (y, x, 3)) in place where no mask is, and outline the masks there."""
    outside = ~np.logical_or.reduce(masks)
    darken(canvas, outside)
    for mask, colour in zip(masks, colours, strict=True):
        bright, dark = outline(mask, lines)
        canvas[dark & outside] = DARK
        canvas[bright & outside] = colour


def darken(canvas: np.ndarray, where: np.ndarray) -> None:
    """Lay the veil over the canvas (uint8 (y, x, 3)) in place, where `where` (bool (y, x)) is true."""
    for channel, colour in enumerate(VEIL):
        table = np.rint(np.arange(256) * (1 - VEIL_SHARE) + colour * VEIL_SHARE).astype(np.uint8)
        plane = canvas[..., channel]
        plane[where] = table[plane[where]]
