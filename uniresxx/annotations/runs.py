"""Run lengths of pixels in a row, and Label Studio's code for them."""

from __future__ import annotations

import numpy as np

BRUSH_LENGTH_BITS = (3, 4, 8, 16)  # of a run's length, less 1: the shortest that holds it is taken
BRUSH_LONGEST = 1 << BRUSH_LENGTH_BITS[-1]
BRUSH_CHANNELS = 4  # red, green, blue and alpha of a pixel


def run_lengths(pixels: np.ndarray) -> list[int]:
    """Lengths of the runs of a bool array of one axis: outside, inside, and so on; the first may be 0."""
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], changes, [len(pixels)]))).tolist()
    return [0, *lengths] if len(pixels) and pixels[0] else lengths


def brush_code(mask_yx: np.ndarray) -> list[int]:
    """A mask in Label Studio's run-length code, as bytes: 255 in all four channels of a pixel inside, 0 outside.

    Bits: 32 for the number of values, 5 for the bits of a value (less 1), four times 4 for the bits of a run's length
    (less 1). Then a run each: 1 because its value repeats, 2 for which of the four sizes its length has, the length
    (less 1), and the value. The last byte is filled with zeros.
    """
    bits = [
        f"{mask_yx.size * BRUSH_CHANNELS:032b}{8 - 1:05b}",
        *(f"{size - 1:04b}" for size in BRUSH_LENGTH_BITS),
    ]
    for place, run in enumerate(run_lengths(mask_yx.ravel())):
        value, left = f"{255 * (place % 2):08b}", run * BRUSH_CHANNELS
        while left:
            length = min(left, BRUSH_LONGEST)
            which = next(index for index, size in enumerate(BRUSH_LENGTH_BITS) if length <= 1 << size)
            bits.append(f"1{which:02b}{length - 1:0{BRUSH_LENGTH_BITS[which]}b}{value}")
            left -= length
    joined = "".join(bits)
    return list(int(joined.ljust(-(-len(joined) // 8) * 8, "0"), 2).to_bytes(-(-len(joined) // 8)))
