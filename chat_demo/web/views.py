"""What the picture component shows: the photo at the size at which it is drawn, and two layers for each mask.

A layer is a PNG in a data URL, so nothing that a visitor sees lies at an address that another could ask for. The
outline is that of every overlay of the project (`uniresxx.imaging.marking`); the veil is laid by the page, which
knows which masks are shown.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from uniresxx.files import png_bytes
from uniresxx.imaging import masks
from uniresxx.imaging.marking import (
    DARK,
    SHARP_SIDE,
    VEIL,
    Lines,
    Size,
    colour_of,
    drawn_size,
    outline,
    scaled_mask,
    scaled_photo,
)
from uniresxx.prediction import Segment
from uniresxx.types import RLE

LARGEST = 1024  # pixels of the longest side of a photo on the page
THUMB = 96


def drawn(photo: np.ndarray) -> Size:
    """(height, width) at which the page draws a photo."""
    height, width = photo.shape[:2]
    return drawn_size(height, width, largest=LARGEST)


def photo_url(photo: np.ndarray) -> str:
    """The photo as drawn, uint8 (y, x, 3): PNG where its pixels are enlarged, JPEG else."""
    sharp = max(photo.shape[:2]) <= SHARP_SIDE
    picture = Image.fromarray(scaled_photo(photo, drawn(photo), sharp))
    if sharp:
        return data_url(png_bytes(picture))
    stream = BytesIO()
    picture.save(stream, format="JPEG", quality=90)
    return data_url(stream.getvalue(), "jpeg")


def thumb_url(photo: np.ndarray) -> str:
    """A small copy of the photo."""
    picture = Image.fromarray(photo)
    picture.thumbnail((THUMB, THUMB))
    return data_url(png_bytes(picture))


def layer(part: Segment, number: int, photo: np.ndarray) -> dict[str, Any]:
    """What the page knows of a phrase; `mask` and `outline` are empty where it is not there."""
    found: dict[str, Any] = {
        "number": number + 1,
        "phrase": part.phrase,
        "colour": css_colour(number),
        "score": None if part.score is None else round(float(part.score), 3),
        "there": part.rle is not None,
        "pixels": 0 if part.rle is None else masks.area(part.rle),
        "mask": "",
        "outline": "",
    }
    if part.rle is not None:
        found |= layer_urls(part.rle, number, drawn(photo))
    return found


def layer_urls(rle: RLE, number: int, size: Size) -> dict[str, str]:
    """The mask and its outline at the drawn size."""
    mask = scaled_mask(masks.decode(rle), size)
    bright, dark = outline(mask, Lines.at(size))
    lines = np.zeros((*size, 4), dtype=np.uint8)
    lines[dark] = (*DARK, 255)
    lines[bright] = (*colour_of(number), 255)
    grey = np.zeros((*size, 2), dtype=np.uint8)
    grey[mask] = 255
    return {
        "mask": data_url(png_bytes(Image.fromarray(grey, "LA"))),
        "outline": data_url(png_bytes(Image.fromarray(lines))),
    }


def picture_value(photo: np.ndarray, name: str, segments: Sequence[Segment], **more: Any) -> dict[str, Any]:
    """The value of the picture component."""
    height, width = drawn(photo)
    return {
        "src": photo_url(photo),
        "width": width,
        "height": height,
        "photo_height": photo.shape[0],
        "photo_width": photo.shape[1],
        "name": name,
        "veil": "rgb({},{},{})".format(*VEIL),
        "layers": [layer(part, number, photo) for number, part in enumerate(segments)],
        **more,
    }


def css_colour(number: int) -> str:
    """The colour of a phrase, counted from 0, as everywhere in the project."""
    return "rgb({},{},{})".format(*colour_of(number))


def data_url(data: bytes, kind: str = "png") -> str:
    """A picture's bytes as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
