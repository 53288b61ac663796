"""Masks kept to be drawn: small in memory, with the surroundings of a small one in the photo's own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uniresxx.imaging.marking import LARGEST_SIDE, Size, box_of, drawn_size, scaled_mask

SMALL_SHARE = 0.01  # of the photo's pixels: a smaller mask may have a zoomed picture
SMALL_SIDE = 0.15  # of the photo's shorter side: the box around it is at most this
MARGIN, LEAST_SIDE = (
    1.5,
    0.08,
)  # side of the surroundings: of the box's longer side; of the photo's shorter one


@dataclass(frozen=True, slots=True)
class Window:
    """A square of the photo around a small mask, in the photo's pixels."""

    top: int
    left: int
    mask: np.ndarray  # bool, the mask inside the square


@dataclass(frozen=True, slots=True)
class Shape:
    """A mask that is not empty, cut to the box around it and packed to bits, at most LARGEST_SIDE pixels long."""

    size: Size  # of the photo, at most LARGEST_SIDE
    box: tuple[int, int, int, int]  # top, left, bottom, right
    bits: np.ndarray
    window: Window | None

    def at(self, size: Size) -> np.ndarray:
        """The mask, bool (y, x), for a photo drawn at `size`."""
        top, left, bottom, right = self.box
        count = (bottom - top) * (right - left)
        mask = np.zeros(self.size, dtype=bool)
        part = np.unpackbits(self.bits, count=count).astype(bool).reshape(bottom - top, right - left)
        mask[top:bottom, left:right] = part
        return scaled_mask(mask, size)

    def equals(self, other: Shape) -> bool:
        """Whether both are the same mask."""
        same = self.size == other.size and self.box == other.box
        return same and np.array_equal(self.bits, other.bits)


def shape_of(mask: np.ndarray) -> Shape | None:
    """Keep a mask, bool (y, x) at the photo's size; None where it has no pixel."""
    box = box_of(mask)
    if box is None:
        return None
    height, width = mask.shape
    size = drawn_size(height, width, smallest=1, largest=LARGEST_SIDE)
    reduced = scaled_mask(mask, size)
    top, left, bottom, right = box_of(reduced) or (0, 0, 0, 0)
    bits = np.packbits(reduced[top:bottom, left:right])
    return Shape(size, (top, left, bottom, right), bits, _window(mask, box))


def _window(mask: np.ndarray, box: tuple[int, int, int, int]) -> Window | None:
    """The surroundings of a mask, None where it is not small."""
    top, left, bottom, right = box
    longest, shorter = max(bottom - top, right - left), min(mask.shape)
    area = np.count_nonzero(mask[top:bottom, left:right])
    if area > SMALL_SHARE * mask.size or longest > SMALL_SIDE * shorter:
        return None
    side = min(shorter, max(3, round(MARGIN * longest), round(LEAST_SIDE * shorter)))
    y, x = (
        min(max(0, (low + high - side) // 2), of - side)
        for low, high, of in ((top, bottom, mask.shape[0]), (left, right, mask.shape[1]))
    )
    return Window(y, x, mask[y : y + side, x : x + side].copy())
