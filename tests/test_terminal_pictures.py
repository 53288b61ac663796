"""Pictures made of half blocks, and the words of an answer while they come."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from chat_demo.pictures import can_show, show_picture, shown_size, small_picture
from chat_demo.streaming import readable, spoken
from uniresxx.imaging.overlay import colour_of

CELL = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)\x1b\[0m")


def terminal(**options):
    out = io.TextIOWrapper(io.BytesIO(), encoding=options.pop("encoding", "utf-8"))
    return Console(file=out, force_terminal=True, width=80, height=24, **options)


def printed(console):
    console.file.flush()
    return console.file.buffer.getvalue().decode()


def test_two_pixels_to_a_character():
    console = terminal(color_system="truecolor", legacy_windows=False)
    picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    show_picture(console, picture)
    lines = printed(console).splitlines()
    assert len(lines) == 3
    for y, line in enumerate(lines):
        cells = [(tuple(map(int, found[:6])), len(found[6])) for found in CELL.findall(line)]
        assert [cell for cell, width in cells for _ in range(width)] == [
            (*picture[2 * y, x].tolist(), *picture[2 * y + 1, x].tolist()) for x in range(5)
        ]


def test_256_colours_get_their_own_codes():
    console = terminal(color_system="256", legacy_windows=False)
    show_picture(console, np.full((2, 3, 3), 255, dtype=np.uint8))
    assert "38;5;" in printed(console) and "38;2;" not in printed(console)


@pytest.mark.parametrize(
    ("options", "shows"),
    [
        ({"color_system": "truecolor"}, True),
        ({"color_system": "256"}, True),
        ({"color_system": "standard"}, False),
        ({"color_system": None}, False),
        ({"color_system": "truecolor", "no_color": True}, False),
        ({"color_system": "truecolor", "encoding": "ascii"}, False),
    ],
)
def test_only_terminals_with_the_colours_and_the_letter(options, shows):
    assert can_show(terminal(legacy_windows=False, _environ={}, **options)) is shows


def test_no_picture_where_the_output_is_a_file():
    assert not can_show(Console(file=io.StringIO(), color_system="truecolor"))


@pytest.mark.parametrize("photo", [(64, 64), (480, 640), (640, 480), (3, 900), (900, 3), (3000, 4000)])
@pytest.mark.parametrize("screen", [(24, 80), (5, 20), (200, 300)])
def test_pictures_fit_into_the_terminal(photo, screen):
    height, width = shown_size(photo, screen)
    assert height % 2 == 0 and height >= 2 and width >= 1
    assert width <= max(8, screen[1] - 1) and height // 2 <= max(4, screen[0] - 6)


def test_masks_keep_the_photo_inside_and_darken_the_rest():
    photo = np.full((40, 60, 3), 200, dtype=np.uint8)
    large, dot = np.zeros((2, 40, 60), dtype=bool)
    large[4:20, 4:30] = True
    dot[30, 50] = True  # far smaller than a small pixel
    shown = small_picture(photo, [None, large, dot], (20, 30))
    assert tuple(shown[5, 8]) == (200, 200, 200)  # inside
    assert tuple(shown[2, 8]) == colour_of(1)  # the outline, in the colour of its number
    assert tuple(shown[15, 25]) == colour_of(2)
    assert tuple(shown[0, 0]) == (60, 60, 60)  # outside
    assert (small_picture(photo, [None], (20, 30)) == 200).all()


def test_words_are_taken_back_on_a_terminal_and_not_written_elsewhere():
    console = terminal(color_system="truecolor", legacy_windows=False, _environ={})
    with spoken(console) as on_words:
        on_words("the fish:[SEG], the")
        on_words("the fish:[SEG], the eye:[REJ].")
    written = printed(console)
    assert "the fish: found, the eye: not there." in written
    assert written.endswith("\x1b[2K") and "\x1b[?25h" in written  # the line is cleared, the cursor is back
    with spoken(Console(file=io.StringIO())) as on_words:
        assert on_words is None
    assert readable("") == "…" and "\x1b" not in readable("a\x1b[2J")
