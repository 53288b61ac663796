"""The number of a mask: drawn into the mask where that is large enough, else beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from uniresxx.imaging.lettering import PAPER, Colour, font_for, ink_on
from uniresxx.imaging.marking import DARK, box_of, scaled_mask

GRID = 96  # longest side at which the pieces of a mask are looked for
PIECES, LEAST_PIECE = 6, 0.3  # of a mask that have a number; of the largest piece's area
LARGEST_SHARE = 0.2  # of a piece that a number may cover


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Pixels from (left, top) on, `width` x `height` of them."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def around(cls, mask: np.ndarray) -> Rectangle:
        """The box around the pixels of a mask that is not empty."""
        top, left, bottom, right = box_of(mask) or (0, 0, 0, 0)
        return cls(left, top, right - left, bottom - top)

    @property
    def part(self) -> tuple[slice, slice]:
        """The rows and columns of an array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), its outermost pixels."""
        return self.left, self.top, self.left + self.width - 1, self.top + self.height - 1

    @property
    def middle(self) -> tuple[float, float]:
        """(x, y) of its middle."""
        return self.left + self.width / 2, self.top + self.height / 2

    def moved(self, right: int, down: int) -> Rectangle:
        """The rectangle elsewhere."""
        return Rectangle(self.left + right, self.top + down, self.width, self.height)

    def meets(self, other: Rectangle) -> bool:
        """Whether the two share a pixel."""
        across = self.left < other.left + other.width and other.left < self.left + self.width
        return across and self.top < other.top + other.height and other.top < self.top + self.height


def chip_size(label: str, letters: int) -> tuple[int, int]:
    """(width, height) of a chip with letters of `letters` pixels; at least a square."""
    height = round(1.4 * letters)
    return max(height, round(font_for(label, letters).getlength(label)) + letters // 2 + 2), height


def draw_chip(pen: ImageDraw.ImageDraw, spot: Rectangle, label: str, colour: Colour, letters: int) -> None:
    """A small filled rectangle with rounded corners and a label."""
    pen.rounded_rectangle(spot.corners, radius=spot.height // 4, fill=colour, outline=DARK)
    pen.text(spot.middle, label, fill=ink_on(colour), font=font_for(label, letters), anchor="mm")


def draw_absent(pen: ImageDraw.ImageDraw, middle: tuple[float, float], size: int, colour: Colour) -> None:
    """A crossed circle of `size` pixels: not there."""
    half, wide = size / 2, max(1, size // 9)
    cross = 0.7 * half
    box = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
    pen.ellipse(box, fill=PAPER, outline=colour, width=wide)
    pen.line(
        (middle[0] - cross, middle[1] + cross, middle[0] + cross, middle[1] - cross), fill=colour, width=wide
    )


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The large connected pieces of a mask, largest first, each a mask of the same size."""
    scale = max(1.0, max(mask.shape) / GRID)
    small = scaled_mask(mask, (max(1, round(mask.shape[0] / scale)), max(1, round(mask.shape[1] / scale))))
    labels = _labelled(small)
    values, counts = np.unique(labels[small], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PIECES]
    kept = [values[k] for k in order if counts[k] >= LEAST_PIECE * counts.max()]
    return [scaled_mask(labels == value, mask.shape) & mask for value in kept]


def _labelled(mask: np.ndarray) -> np.ndarray:
    """A number per connected piece (eight neighbours), 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
        most = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
        most[~mask] = 0
        if np.array_equal(most, labels):
            return labels
        labels = most


def place_within(piece: np.ndarray, width: int, height: int, taken: Sequence[Rectangle]) -> Rectangle | None:
    """A place of `width` x `height` pixels in the thickest part of `piece`; None where it would cover too much."""
    spot = _inside(piece, width, height)
    return None if spot is None or any(spot.meets(other) for other in taken) else spot


def place_beside(
    box: Rectangle, width: int, height: int, gap: int, taken: Sequence[Rectangle], masks: np.ndarray
) -> Rectangle:
    """A place of `width` x `height` pixels next to `box`.

    Args:
        box: around what is numbered.
        width: of the number's badge.
        height: of the number's badge.
        gap: between the two.
        taken: where nothing may be put.
        masks: bool (y, x), all masks of the picture, which are left free if possible.
    """
    tall, wide = masks.shape
    fallback: list[tuple[int, Rectangle]] = []
    for spot in _beside(box, width, height, gap):
        left, top = (
            max(0, min(at, most)) for at, most in ((spot.left, wide - width), (spot.top, tall - height))
        )
        spot = Rectangle(left, top, width, height)
        if any(spot.meets(other) for other in taken):
            continue
        covered = int(np.count_nonzero(masks[spot.part]))
        if not covered:
            return spot
        fallback.append((covered, spot))
    return min(fallback, key=lambda found: found[0])[1] if fallback else spot


def _inside(piece: np.ndarray, width: int, height: int) -> Rectangle | None:
    """A badge in the middle of the piece's thickest part, None where it does not fit well."""
    box = Rectangle.around(piece)
    part = piece[box.part]
    if width * height > LARGEST_SHARE * np.count_nonzero(part) or width > box.width or height > box.height:
        return None
    y, x = deepest(part)
    spot = Rectangle(box.left + x - width // 2, box.top + y - height // 2, width, height)
    under = piece[spot.part] if min(spot.left, spot.top) >= 0 else np.zeros(0, dtype=bool)
    return spot if np.count_nonzero(under) == width * height else None


def deepest(mask: np.ndarray) -> tuple[int, int]:
    """(y, x) of a pixel far from the mask's edge; the picture's border is an edge too."""
    scale = max(1.0, max(mask.shape) / GRID)
    size = (max(1, round(mask.shape[0] / scale)), max(1, round(mask.shape[1] / scale)))
    core = ~scaled_mask(~mask, size)
    if not core.any():
        core = scaled_mask(mask, size)
    while True:
        padded = np.pad(core, 1)
        inner = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if not inner.any():
            break
        core = inner
    y, x = np.nonzero(core)
    nearest = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
    return (
        min(mask.shape[0] - 1, int((y[nearest] + 0.5) * mask.shape[0] / size[0])),
        min(mask.shape[1] - 1, int((x[nearest] + 0.5) * mask.shape[1] / size[1])),
    )


def _beside(box: Rectangle, width: int, height: int, gap: int) -> Iterator[Rectangle]:
    """Places around a box, the nearest first."""
    middle_x, middle_y = box.left + (box.width - width) // 2, box.top + (box.height - height) // 2
    for away in (gap, 3 * gap + height, 6 * gap + 2 * height):
        above, below = box.top - away - height, box.top + box.height + away
        before, behind = box.left - away - width, box.left + box.width + away
        for x, y in (
            *((middle_x, above), (behind, middle_y), (middle_x, below), (before, middle_y)),
            *((before, above), (behind, above), (before, below), (behind, below)),
        ):
            yield Rectangle(x, y, width, height)
