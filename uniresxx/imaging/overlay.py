"""What words mean in a photo, drawn: the masks keep the photo's colours, the rest is dark, a legend below.

Phrases whose masks are apart share one picture; where masks of different phrases overlap or touch, and where more
than six phrases have one, each phrase has its own. A small mask is shown zoomed as well.

An overlay is for viewing, it is not a mask file, so its size is bounded (our choice): a small photo is enlarged by
a whole factor, one above 2048 pixels is reduced. 50 megapixels costs one reduced copy, and each mask at most one
byte per photo pixel, one mask at a time; then it is kept as bits of at most 2048 x 2048 pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, log

import numpy as np
from PIL import Image

from uniresxx.imaging.legend import Line, draw_lines, label_of, scores_of
from uniresxx.imaging.lettering import one_line
from uniresxx.imaging.marking import LARGEST_SIDE, Size, colour_of, drawn_size
from uniresxx.imaging.panel import Mark, draw_panel, fits_together
from uniresxx.imaging.shapes import Shape, shape_of
from uniresxx.imaging.sheets import in_columns, stacked

MOST_TOGETHER = 6  # phrases with a mask in one picture
MOST_LAYERS = 40  # drawn; the rest is counted
SMALL_PANEL, NARROWEST = 384, 240  # a small photo in one of several pictures; the width of text below one
NARROWEST_PAGE = 320
ASPECT = 1.7  # width by height that several pictures together should have


@dataclass(frozen=True, slots=True)
class Layer:
    """One legend line. `mask` is bool (y, x) at the photo's size, or None where the thing is not there."""

    text: str
    mask: np.ndarray | None
    score: float | None = None  # predicted IoU or measured IoU, 0..1
    note: str = ""  # appended to the legend line ("IoU 0.81", "truth", …)


@dataclass(slots=True)
class _Mask:
    """One mask and the numbers, counted from 1, of the layers that have it."""

    shape: Shape
    numbers: list[int]
    score: float | None


@dataclass(slots=True)
class _Phrase:
    """Layers with equal words, all of them there or none."""

    text: str
    note: str
    masks: list[_Mask] = field(default_factory=list)  # none: not there
    absent: list[int] = field(default_factory=list)  # numbers of layers without a mask

    def line(self, index: int, numbered: bool) -> Line:
        """The legend line of the phrase; `index` counts phrases and gives the colour."""
        if not self.masks:
            tail = ", ".join(part for part in ("not there", self.note) if part)
            return Line(self.text, tail, label_of(self.absent) if numbered else "", absent=True)
        numbers = sorted(number for mask in self.masks for number in mask.numbers)
        scores = [mask.score for mask in self.masks if mask.score is not None]
        tail = " ".join(part for part in (scores_of(scores), self.note) if part)
        return Line(self.text, tail, label_of(numbers) if numbered else "", colour_of(index))

    def marks(self, index: int, numbered: bool) -> list[Mark]:
        """Its masks as they are marked."""
        return [
            Mark(mask.shape, colour_of(index), label_of(mask.numbers) if numbered else "")
            for mask in self.masks
        ]


def draw_overlay(photo: np.ndarray, layers: Iterable[Layer], title: str = "") -> Image.Image:
    """Draw `layers` in order on `photo` (uint8 (y, x, 3) RGB) with a legend below; an RGB picture.

    Layers of equal words share a colour and a legend line. `layers` may be a generator that decodes masks one by
    one. ValueError where a mask has another size.
    """
    phrases, left_out = _phrases(photo.shape[:2], layers)
    there = [(index, phrase) for index, phrase in enumerate(phrases) if phrase.masks]
    numbered = len(phrases) > 1 or sum(len(phrase.masks) for phrase in phrases) > 1
    size = drawn_size(*photo.shape[:2])
    together = [mark for index, phrase in there for mark in phrase.marks(index, numbered)]
    remarks = [Line(f"… and {left_out} more")] if left_out else []
    if len(there) < 2 or (len(there) <= MOST_TOGETHER and fits_together(together, photo.shape[:2], size)):
        letters = _letters(size)
        picture = draw_panel(photo, together, size, letters)
        lines = [phrase.line(index, numbered) for index, phrase in enumerate(phrases)]
        return _page(picture, lines + remarks, title, letters)
    absent = [phrase.line(index, numbered) for index, phrase in enumerate(phrases) if not phrase.masks]
    columns, size = _grid(len(there), photo.shape[:2])
    letters, cards = _letters(size), []
    for index, phrase in there:
        panel = draw_panel(photo, phrase.marks(index, len(phrase.masks) > 1), size, letters)
        line = draw_lines([phrase.line(index, numbered)], max(panel.width, NARROWEST), letters)
        cards.append(stacked([panel, line]))
    return _page(in_columns(cards, columns, letters), absent + remarks, title, letters)


def _phrases(photo_size: Size, layers: Iterable[Layer]) -> tuple[list[_Phrase], int]:
    """Layers by their words, masks kept small; and the number of those beyond MOST_LAYERS."""
    found: dict[tuple[str, str, bool], _Phrase] = {}
    left_out = 0
    for number, layer in enumerate(layers, start=1):
        if layer.mask is not None and layer.mask.shape != photo_size:
            sizes = f"is {layer.mask.shape}, the photo is {tuple(photo_size)} (y, x)"
            raise ValueError(f"mask of {layer.text!r} {sizes}")
        shape = None if layer.mask is None else shape_of(layer.mask)
        text, note = one_line(layer.text) or "(no text)", one_line(layer.note)
        key = (text, note, shape is not None)
        if key not in found and number > MOST_LAYERS:
            left_out += 1
            continue
        phrase = found.setdefault(key, _Phrase(text, note))
        if shape is None:
            phrase.absent.append(number)
            continue
        equal = next((mask for mask in phrase.masks if mask.shape.equals(shape)), None)
        if equal is not None:
            equal.numbers.append(number)
        elif number > MOST_LAYERS:
            left_out += 1
        else:
            phrase.masks.append(_Mask(shape, [number], layer.score))
    return list(found.values()), left_out


def _letters(size: Size) -> int:
    """Height of the letters for a photo drawn at `size`."""
    return min(40, max(14, round(max(size) / 38)))


def _grid(count: int, photo_size: Size) -> tuple[int, Size]:
    """Columns for `count` pictures of a photo, and the size of each, so that all together are a good page."""
    text = 50  # about the height of a line of text and the gap, pixels

    def penalty(columns: int) -> float:
        size = _panel_size(columns, photo_size)
        rows = ceil(count / columns)
        aspect = columns * max(size[1], NARROWEST) / (rows * (size[0] + text))
        return abs(log(aspect / ASPECT)) + 0.5 * (rows * columns - count)

    columns = min(range(1, min(count, 8) + 1), key=penalty)
    return columns, _panel_size(columns, photo_size)


def _panel_size(columns: int, photo_size: Size) -> Size:
    """The size of one of `columns` pictures beside one another."""
    largest = (LARGEST_SIDE - (columns + 1) * 24) // columns
    return drawn_size(*photo_size, smallest=min(SMALL_PANEL, largest), largest=largest)


def _page(body: Image.Image, lines: Sequence[Line], title: str, letters: int) -> Image.Image:
    """The title above the pictures, the lines below."""
    width = max(body.width, NARROWEST_PAGE)
    head = [draw_lines([Line(title)], width, letters)] if title else []
    foot = [draw_lines(lines, width, letters)] if lines else []
    return stacked([*head, body, *foot])
