"""Text in pictures: fonts for any script, text on one line, line breaks. PIL only."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import numpy as np
from PIL import ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
PAPER, INK, FAINT = (255, 255, 255), (28, 30, 34), (112, 118, 128)


def one_line(text: str, longest: int = 400) -> str:
    """Text safe to print on one line: blanks collapsed, control characters replaced, cut at `longest`."""
    flat = " ".join(text.split())
    safe = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in flat)
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"


@lru_cache(maxsize=32)
def _font(size: int, own: bool) -> Font:
    """PIL's own font; for letters that it lacks the first installed font with more of them, if any."""
    for name in () if own else WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _lacks(letter: str) -> bool:
    """Whether PIL's own font draws the sign for a missing letter."""
    found, missing = (_font(16, True).getmask(each) for each in (letter, "\uffff"))
    return found.size == missing.size and bytes(found) == bytes(missing)


def font_for(text: str, size: int) -> Font:
    """A font for this text: the same on every machine where the text is English."""
    return _font(size, not any(_lacks(letter) for letter in set(text)))


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


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on the colour (luma weights of ITU-R BT.601)."""
    return (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
