"""Uploaded photos: checked by size, format and pixels before a pixel is decoded. No path is ever opened."""

from __future__ import annotations

import base64
import binascii
import re

import numpy as np

from uniresxx.imaging.decode import decode_photo, encoded_header
from uniresxx.imaging.inputs import photo_pixels
from uniresxx.serve.refused import Refused
from uniresxx.serve.settings import ServeSettings

# the first bytes of what is accepted: what cameras and browsers write
STARTS = {"JPEG": re.compile(rb"\xff\xd8\xff"), "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
          "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL)}  # fmt: skip
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)


def check_photo(data: bytes, name: str, settings: ServeSettings) -> tuple[int, int]:
    """Height and width of a photo, by its header. Refused: 413 too large, 415 another format, InputError damaged."""
    if len(data) > settings.max_photo_bytes:
        raise Refused(413, f"{name}: {len(data)} bytes are over the cap of {settings.max_photo_bytes}")
    if not data:
        raise Refused(400, f"{name}: the file is empty (0 bytes)")
    if not any(start.match(data) for start in STARTS.values()):
        raise Refused(415, f"{name}: not a picture in {', '.join(STARTS)}; save it as one of them")
    height, width = encoded_header(data, name).stored
    if height * width > settings.max_pixels:
        raise Refused(
            413, f"{name}: {width} x {height} pixels are over the cap of {settings.max_pixels} pixels"
        )
    return height, width


def decoded(data: bytes, name: str) -> np.ndarray:
    """uint8 (y, x, 3) of a photo's checked bytes, upright. InputError: damaged, or too small."""
    return photo_pixels(decode_photo(data, name))


def from_base64(text: str, name: str, settings: ServeSettings) -> bytes:
    """The bytes of a photo in base64, with or without `data:image/…;base64,` before it."""
    head = _DATA_URL.match(text)
    body = text[head.end() :] if head else text
    if ":" in body[:40]:
        raise Refused(400, f"{name}: send the picture itself, in base64 or as data:image/png;base64,…")
    if len(body) > settings.max_photo_bytes * 4 // 3 + 8:
        raise Refused(413, f"{name}: over the cap of {settings.max_photo_bytes} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{name}: not valid base64") from None
