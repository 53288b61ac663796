"""Lines below a picture: the number and colour of each phrase, the phrase, its score. numpy and PIL only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from uniresxx.imaging.badges import Rectangle, chip_size, draw_absent, draw_chip
from uniresxx.imaging.lettering import FAINT, INK, PAPER, Colour, font_for, one_line, wrapped


@dataclass(frozen=True, slots=True)
class Line:
    """A phrase, or a remark where `colour` and `absent` are not set."""

    text: str
    tail: str = ""  # faint, after the text
    label: str = ""  # of the chip, as on the badges
    colour: Colour | None = None  # of the chip; None: no mask
    absent: bool = False

    @property
    def words(self) -> str:
        """The line as text: `2 left wheel of the red car 0.83`, `blue cat: not there`."""
        return " ".join(part for part in (self.label, self.text, self.tail) if part)


def label_of(numbers: Sequence[int]) -> str:
    """Ascending numbers as few letters: `1`, `2, 4`, `1-5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts) if len(parts) < 5 else f"{parts[0]}, … {parts[-1]}"


def scores_of(scores: Sequence[float]) -> str:
    """One or few scores, or the lowest and the highest of many."""
    if len(scores) > 3:
        return f"{min(scores):.2f} to {max(scores):.2f}"
    return ", ".join(f"{score:.2f}" for score in scores)


def draw_lines(lines: Sequence[Line], width: int, size: int) -> Image.Image:
    """The lines one below another on white, `width` pixels wide, letters of `size` pixels."""
    gap, step = round(0.6 * size), round(1.55 * size)
    chips = max((_chip_width(line, size) for line in lines), default=0)
    left = gap + (chips + gap if chips else 0)
    rows: list[tuple[Line | None, str, str]] = []
    for line in lines:
        rows += _rows(line, width - left - gap, size)
    sheet = Image.new("RGB", (width, 2 * gap + step * len(rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, (first, text, tail) in enumerate(rows):
        middle = gap + row * step + step // 2
        font = font_for(text, size)
        if first is not None and _chip_width(first, size):
            _draw_sign(pen, first, Rectangle(gap, middle - round(0.7 * size), chips, round(1.4 * size)), size)
        pen.text((left, middle), text, fill=INK, font=font, anchor="lm")
        if tail:
            x = left + font.getlength(text) + (0.6 * size if text else 0)
            pen.text((x, middle), tail, fill=FAINT, font=font_for(tail, size), anchor="lm")
    return sheet


def _rows(line: Line, width: int, size: int) -> list[tuple[Line | None, str, str]]:
    """A line broken into rows of (the line at its first row, text, faint text)."""
    text, tail = one_line(line.text) or "(no text)", one_line(line.tail)
    parts = wrapped(text, font_for(text, size), width)
    rows: list[tuple[Line | None, str, str]] = [
        (None if number else line, part, "") for number, part in enumerate(parts)
    ]
    if tail:
        used = font_for(parts[-1], size).getlength(parts[-1]) + 0.6 * size
        if used + font_for(tail, size).getlength(tail) <= width:
            rows[-1] = (rows[-1][0], parts[-1], tail)
        else:
            rows += [(None, "", part) for part in wrapped(tail, font_for(tail, size), width, 2)]
    return rows


def _chip_width(line: Line, size: int) -> int:
    """Width of the sign before a line, 0 where it has none."""
    return chip_size(line.label, size)[0] if line.colour is not None or line.absent else 0


def _draw_sign(pen: ImageDraw.ImageDraw, line: Line, spot: Rectangle, size: int) -> None:
    """The coloured chip of a phrase; a crossed circle where it is not there."""
    if line.colour is not None:
        draw_chip(pen, spot, line.label, line.colour, size)
    else:
        draw_absent(pen, spot.middle, size, FAINT)
