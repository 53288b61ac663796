"""A folder of PNG masks, and what has to be assumed about each of them."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.imaging import decode as images
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.problems import Problems

_SHOWN_VALUES = 6
_NO_ZERO = (
    "PNGs without a pixel of value 0: values above 0 are mask, so these masks cover the whole picture; write 0 for "
    "background, and cut probabilities at a threshold first"
)
_GREY = (
    "PNGs of more than two grey values: every value above 0 is mask; cut probabilities at a threshold first"
)
_PALETTE = "PNGs with a palette: number 0 is background and every other number is mask, whatever the colours"
_COLOUR = "PNGs in colour: every pixel that is not black is mask"
_ALPHA = (
    "PNGs with an alpha channel: transparent is background; where all colours are black, alpha is the mask"
)


def png_files(folder: Path, names: Container[str]) -> Iterator[tuple[str, str, Path]]:
    """(place, expression id, file) per PNG of a folder; InputError where it holds none."""
    found = False
    for root, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if file.startswith(".") or not file.lower().endswith(".png"):
                continue
            found = True
            path = Path(root, file)
            place = path.relative_to(folder).as_posix()
            name = place[: -len(".png")]
            yield place, name if name in names else name.replace("__", "/"), path
    if not found:
        raise InputError(
            f"{folder} holds no PNG: give a predictions.jsonl, or a folder of <expression_id>.png"
        )


def from_png(path: Path, size: tuple[int, int], problems: Problems) -> Prediction:
    """The answer that a PNG holds; notes what is assumed about its values. InputError where it does not fit."""
    data = images.read_encoded(path)
    mask = images.decode_mask(data, str(path))
    if mask.shape != size:
        raise InputError(
            f"mask is {mask.shape[0]} x {mask.shape[1]} (height x width), the photo is {size[0]} x {size[1]}"
        )
    if (assumed := _assumption(data)) is not None:
        problems.assumed[assumed] += 1
    return Prediction(rejected=False, rle=masks.encode(mask), text=None)


def _assumption(data: bytes) -> str | None:
    """What `decode_mask` assumes of a PNG that it has decoded; None for 0 and one other grey value."""
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        if image.mode == "P":
            return _PALETTE
        if "A" in image.getbands():
            return _ALPHA
        if image.mode == "RGB":
            return _COLOUR
        values = np.unique(np.asarray(image))
    if values[0] != 0 and len(values) > 1:
        return _NO_ZERO
    return _GREY if len(values) > 2 else None
