"""The colours of PASCAL VOC, by the number of a class."""

from __future__ import annotations


def voc_palette() -> list[tuple[int, int, int]]:
    """The 256 colours: three bits of the number at a time are the highest, next, … bits of red, green and blue."""
    colours = []
    for number in range(256):
        rgb, rest = [0, 0, 0], number
        for place in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << place
            rest >>= 3
        colours.append((rgb[0], rgb[1], rgb[2]))
    return colours
