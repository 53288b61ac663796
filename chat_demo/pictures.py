"""Pictures in a terminal: two pixels to a character, the upper half block in the colour of one on that of the other.

As in an overlay, the rest of the picture is darkened and a mask keeps the photo's colours, with an outline in the
colour of its number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment as Piece
from rich.segment import Segments
from rich.style import Style

from uniresxx.imaging.overlay import colour_of

UPPER_HALF = "▀"
LINES_BESIDE = 6  # of the terminal, left for question, answer and prompt
MOST_COLUMNS, MOST_LINES = 100, 40
DARKENED = 0.3
COVERED = 0.4  # a small pixel belongs to a mask that covers as much of it


def can_show(console: Console) -> bool:
    """Whether a terminal has the colours and the letter for pictures."""
    try:
        UPPER_HALF.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    enough = console.color_system in ("256", "truecolor", "windows")
    return console.is_terminal and not console.is_dumb_terminal and not console.no_color and enough


def shown_size(photo: tuple[int, int], terminal: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels at which a photo of (y, x) pixels fits into (lines, columns) of a terminal."""
    lines = max(4, min(terminal[0] - LINES_BESIDE, MOST_LINES))
    columns = max(8, min(terminal[1] - 1, MOST_COLUMNS))
    scale = min(2 * lines / photo[0], columns / photo[1])
    height, width = round(photo[0] * scale), round(photo[1] * scale)
    return max(2, height + height % 2), max(1, width)


def small_picture(photo: np.ndarray, masks: Sequence[np.ndarray | None], size: tuple[int, int]) -> np.ndarray:
    """The photo with its masks as uint8 (y, x, 3) of `size`, a mask of None is skipped but keeps its number.

    Args:
        photo: uint8 (y, x, 3).
        masks: bool (y, x) at the photo's size.
        size: (height, width).
    """
    small = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BOX)).copy()
    shown = [None if mask is None else _small_mask(mask, size) for mask in masks]
    inside = [mask for mask in shown if mask is not None]
    if not inside:
        return small
    outside = ~np.logical_or.reduce(inside)
    small[outside] = (small[outside] * DARKENED).astype(np.uint8)
    for number, mask in enumerate(shown):
        if mask is not None:
            small[_outline(mask)] = colour_of(number)
    return small


def show_picture(console: Console, picture: np.ndarray) -> None:
    """Print a small picture of an even height."""
    pieces: list[Piece] = []
    for upper, lower in zip(picture[::2].tolist(), picture[1::2].tolist(), strict=True):
        for above, below in zip(upper, lower, strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            pieces.append(Piece(UPPER_HALF, style))
        pieces.append(Piece.line())
    console.print(Segments(pieces), end="")


def _small_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at a small size; of one that covers no small pixel well, those that it covers best."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    covered = np.asarray(picture.resize(size[::-1], Image.Resampling.BOX)) / 255
    return covered >= max(min(COVERED, covered.max()), 1e-6)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that are next to one outside it; the border of the picture is no outside."""
    padded = np.pad(mask, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~core
