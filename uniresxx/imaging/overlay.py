"""Masks drawn on a photo: colour, outline, number, legend. numpy and PIL only.

An overlay is for viewing, it is not a mask file, so its size is bounded (our choice): a photo whose
longest side is under 320 pixels is enlarged by a whole factor, one above 2048 is reduced. 50 megapixels
costs one reduced copy, and each mask at most one byte per photo pixel, one mask at a time.

Colours are those of Okabe and Ito (2008), which people with the common kinds of colour blindness tell apart.
Colour is never the only sign: each mask has an outline and carries the number of its legend line.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito, Color Universal Design (2008), without black; neighbours in the list are far apart
PALETTE = (
    (230, 159, 0),  # orange
    (0, 114, 178),  # blue
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermillion
    (86, 180, 233),  # sky blue
    (204, 121, 167),  # reddish purple
)
SMALLEST_SIDE, LARGEST_SIDE = 320, 2048  # of the longest side of the drawn photo, pixels
MOST_LINES = 40  # legend entries written out; the rest is counted
OPACITY = 0.45
ABSENT = (120, 120, 120)


@dataclass(frozen=True, slots=True)
class Layer:
    """One legend line. `mask` is bool (y, x) at the photo's size, or None where the thing is not there."""

    text: str
    mask: np.ndarray | None
    score: float | None = None  # predicted IoU or measured IoU, 0..1
    note: str = ""  # appended to the legend line ("IoU 0.81", "truth", …)


def one_line(text: str, longest: int = 400) -> str:
    """Text safe to print on one line: blanks collapsed, control characters replaced, cut at `longest`."""
    flat = " ".join(text.split())
    safe = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in flat)
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"


def colour_of(index: int) -> tuple[int, int, int]:
    """The colour of the index-th layer, counted from 0; after seven the colours come again."""
    return PALETTE[index % len(PALETTE)]


def drawn_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a photo is drawn, between SMALLEST_SIDE and LARGEST_SIDE."""
    longest = max(height, width)
    if longest > LARGEST_SIDE:
        return max(1, round(height * LARGEST_SIDE / longest)), max(1, round(width * LARGEST_SIDE / longest))
    factor = ceil(SMALLEST_SIDE / longest) if longest < SMALLEST_SIDE else 1
    return height * factor, width * factor


def draw_overlay(photo: np.ndarray, layers: Iterable[Layer], title: str = "") -> Image.Image:
    """Draw `layers` in order on `photo` (uint8 (y, x, 3) RGB) with a legend below; an RGB picture.

    `layers` may be a generator that decodes masks one by one. ValueError where a mask has another size.
    """
    height, width = photo.shape[:2]
    size = drawn_size(height, width)
    canvas = _resized(photo, size)
    entries: list[Layer] = []
    badges: list[tuple[int, int, int]] = []  # layer index, x, y
    for index, layer in enumerate(layers):
        entries.append(Layer(layer.text, None if layer.mask is None else _NO_PIXELS, layer.score, layer.note))
        if layer.mask is None:
            continue
        if layer.mask.shape != (height, width):
            sizes = f"is {layer.mask.shape}, the photo is {(height, width)} (y, x)"
            raise ValueError(f"mask of {layer.text!r} {sizes}")
        anchor = paint_mask(canvas, resized_mask(layer.mask, size), colour_of(index))
        if anchor is not None:
            badges.append((index, *anchor))
    picture = Image.fromarray(canvas)
    font_size = min(28, max(13, max(size) // 45))
    if len(entries) > 1:
        _draw_badges(picture, badges, font_size)
    return _with_legend(picture, entries, title, font_size)


_NO_PIXELS = np.zeros((0, 0), dtype=bool)  # marks "has a mask" in the legend once the mask itself is freed


def _resized(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A writable copy of the photo at (height, width) `size`."""
    if photo.shape[:2] == size:
        return np.array(photo)
    picture = Image.fromarray(np.ascontiguousarray(photo))
    larger = size[0] > photo.shape[0] or size[1] > photo.shape[1]
    method = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    return np.array(picture.resize((size[1], size[0]), method))


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at the drawn size. Reducing keeps all drawn pixels it touches: small parts stay visible."""
    if mask.shape == size:
        return mask.astype(bool, copy=False)
    if size[0] > mask.shape[0] or size[1] > mask.shape[1]:
        factor = size[0] // mask.shape[0]
        return np.repeat(np.repeat(mask.astype(bool), factor, axis=0), factor, axis=1)
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    return np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, axis=0), columns, axis=1)


def paint_mask(
    canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], opacity: float = OPACITY
) -> tuple[int, int] | None:
    """Colour and outline one mask in place; returns a point (x, y) inside, None where the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    thick = max(1, round(max(mask.shape) / 320))
    margin = 1 + thick
    y0, y1 = max(0, rows[0] - margin), rows[-1] + 1 + margin
    x0, x1 = max(0, columns[0] - margin), columns[-1] + 1 + margin
    patch, inside = canvas[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    tint = np.array(colour, dtype=np.float32)
    patch[inside] = (patch[inside] * (1 - opacity) + tint * opacity).astype(np.uint8)
    core = inside
    for _ in range(thick):
        core = _eroded(core)
    patch[inside & ~core] = colour
    patch[_dilated(inside) & ~inside] = ink_on(colour)  # a contrasting line, visible on any background
    y, x = np.nonzero(core if core.any() else inside)
    nearest = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
    return int(x0 + x[nearest]), int(y0 + y[nearest])


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours are in the mask too; the border counts as outside."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _dilated(mask: np.ndarray) -> np.ndarray:
    """Pixels that are in the mask or next to it (four neighbours)."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _draw_badges(picture: Image.Image, badges: Sequence[tuple[int, int, int]], font_size: int) -> None:
    """Write each layer's number on its mask, inside the picture; the numbers of equal masks side by side."""
    draw = ImageDraw.Draw(picture)
    tall, drawn = font_size + 4, list[tuple[int, int, int]]()
    for index, x, y in badges:
        text = str(index + 1)
        font = font_for(text, font_size)
        wide = round(font.getlength(text)) + 6
        x = max(0, min(x - wide // 2, picture.width - 1 - wide))
        y = max(0, min(y - tall // 2, picture.height - 1 - tall))
        for left, top, other in sorted(drawn):
            if x < left + other and left < x + wide and abs(top - y) < tall:
                x = left + other  # may leave the right edge where very many masks coincide
        drawn.append((x, y, wide))
        draw.rectangle((x, y, x + wide, y + tall), fill=colour_of(index), outline=(0, 0, 0))
        draw.text((x + wide / 2, y + tall / 2), text, fill=ink_on(colour_of(index)), font=font, anchor="mm")


def ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever reads better on the colour (luma weights of ITU-R BT.601)."""
    return (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


@lru_cache(maxsize=32)
def _font(size: int, latin: bool) -> Font:
    """PIL's own font; for other scripts the first installed font with more letters, if any."""
    for name in () if latin else WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def font_for(text: str, size: int) -> Font:
    """A font for this text: the same on every machine where the text is Latin."""
    return _font(size, all(ord(letter) < 0x250 or letter in "–—‘’“”…" for letter in text))


def legend_text(layer: Layer, number: int | None) -> str:
    """The legend line of a layer, e.g. `2  left wheel of the red car  0.83` or `blue cat: not there`."""
    text = one_line(layer.text) or "(no text)"
    if layer.mask is None:
        text += ": not there"
    elif layer.score is not None:
        text += f"  {layer.score:.2f}"
    parts = ("" if number is None else f"{number} ", text, one_line(layer.note))
    return " ".join(part for part in parts if part)


def wrapped(text: str, font: Font, max_width: int, most: int = 3) -> list[str]:
    """Break text into lines of at most `max_width` pixels, between words where possible, then an ellipsis."""
    lines: list[str] = []
    while not lines or text:
        ends = range(2, len(text) + 1)
        end = 1 + bisect_right(ends, float(max_width), key=lambda end: float(font.getlength(text[:end])))
        if end < len(text) and text[end] != " " and " " in text[1:end]:
            end = text.rfind(" ", 1, end)
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-1] + "…"]


def _with_legend(picture: Image.Image, entries: Sequence[Layer], title: str, size: int) -> Image.Image:
    """The picture with a white panel below: one line per layer with its colour, number, phrase and score."""
    gap, step, box = size // 2, round(size * 1.4), size
    width = max(picture.width, SMALLEST_SIDE)
    text_width = width - box - 3 * gap
    rows: list[tuple[int | None, bool, str]] = [(None, False, one_line(title))] if title else []
    for index, layer in enumerate(entries[:MOST_LINES]):
        text = legend_text(layer, index + 1 if len(entries) > 1 else None)
        for number, line in enumerate(wrapped(text, font_for(text, size), text_width)):
            rows.append((index if number == 0 else None, layer.mask is not None, line))
    if len(entries) > MOST_LINES:
        rows.append((None, False, f"… and {len(entries) - MOST_LINES} more"))
    panel = Image.new("RGB", (width, picture.height + 2 * gap + step * len(rows)), (255, 255, 255))
    panel.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(panel)
    for row, (at, present, line) in enumerate(rows):
        y = picture.height + gap + row * step
        if at is not None:
            square = (gap, y + step // 2 - box // 2, gap + box, y + step // 2 + box // 2)
            if present:
                draw.rectangle(square, fill=colour_of(at), outline=(0, 0, 0))
            else:  # grey and crossed out: there is no mask
                draw.rectangle(square, outline=ABSENT)
                draw.line((square[0], square[1], square[2], square[3]), fill=ABSENT)
                draw.line((square[0], square[3], square[2], square[1]), fill=ABSENT)
        ink = (0, 0, 0) if at is None or present else ABSENT
        draw.text((2 * gap + box, y + step // 2), line, fill=ink, font=font_for(line, size), anchor="lm")
    return panel if rows else picture
