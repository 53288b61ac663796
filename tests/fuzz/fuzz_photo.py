"""Photos and mask files: refused with InputError, or pixels of the size in the header."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.imaging.decode import decode_mask, decode_photo, encoded_size


def check(data: bytes) -> None:
    """Raise anything but InputError where a picture is misread."""
    size = encoded_size(data)
    try:
        photo = decode_photo(data, "x")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert photo.dtype == np.uint8 and photo.shape[2:] == (3,) and size in (None, photo.shape[:2])
    try:
        mask = decode_mask(data, "x")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert mask.dtype == bool and mask.ndim == 2


def seeds() -> list[bytes]:
    """Small pictures of every format and mode."""
    found = []
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3))
    for kind, modes in (
        ("PNG", ("RGB", "L", "P", "1", "RGBA", "LA")),
        ("JPEG", ("RGB", "L", "CMYK")),
        ("WEBP", ("RGB",)),
        ("TIFF", ("RGB", "L", "P", "1", "RGBA", "CMYK", "F")),
        ("BMP", ("RGB", "L", "P", "1")),
    ):
        for mode in modes:
            stream = io.BytesIO()
            picture.convert(mode).save(stream, kind, **({} if kind == "BMP" else {"exif": exif}))
            found.append(stream.getvalue())
    return found


if __name__ == "__main__":
    from _fuzz import run

    run(__file__)
