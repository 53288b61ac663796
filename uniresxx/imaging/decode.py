"""Photos as a person sees them: RGB, EXIF orientation applied, checked before a pixel is decoded.

Only JPEG, PNG and WEBP are opened, the first frame of each. Pillow reads the size from the header; it is capped
before anything is decoded. Errors: InputError, one line that names the file.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from uniresxx.errors import InputError, MissingPhotoError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 2**20
MAX_SCANS = 64  # our choice: encoders write 10 to 20; every scan of a few bytes costs a walk over all pixels
_JPEG_ALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # within a scan: not a byte of the picture
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)


def read_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a photo file to uint8 (y, x, 3) RGB with its EXIF orientation applied.

    Raises InputError naming the file: missing, a folder, empty, another format, over 50 megapixels, damaged.
    """
    return decode_photo(read_encoded(path), str(path))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Bool (y, x) of a PNG mask: pixels whose grey value is above 0. InputError as `read_photo`."""
    return decode_mask(read_encoded(path), str(path))


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Integers (y, x) of a PNG of labels, as they are stored; of one with a palette, the places in it.

    InputError as `read_photo`, also where it holds colours.
    """
    with _opened(read_encoded(path), str(path), ("PNG",)) as image:
        if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
            raise InputError(f"{path}: must hold one label for each pixel, not colours ({image.mode})")
        return np.asarray(image)


def read_encoded(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a photo's file. InputError naming it: missing, no regular file, over the cap, unreadable."""
    place = Path(path)
    try:
        if not place.exists():
            raise MissingPhotoError(f"{place}: no such photo")
        if place.is_dir():
            raise InputError(f"{place}: is a folder, not a photo; name the files in it")
        if not place.is_file():
            raise InputError(f"{place}: is not a regular file")
        if place.stat().st_size > MAX_BYTES:
            raise InputError(f"{place}: is over the cap of {MAX_BYTES} bytes for a photo")
        return place.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(place)!r}: cannot be read ({error})") from None


def decode_photo(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of a photo, as `read_photo` does; `name` is what an error calls it."""
    with _opened(data, name) as image:
        return _to_rgb(image)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of a mask, as `read_mask` does; `name` is what an error calls it."""
    with _opened(data, name, ("PNG",)) as image:
        plain = image if image.mode in ("1", "L", "I", "I;16", "I;16B") else image.convert("L")
        return np.asarray(plain) > 0


def rgb_of(picture: Image.Image, name: str = "the picture") -> np.ndarray:
    """uint8 (y, x, 3) of an opened Pillow picture: the pixels `read_photo` gives for its file.

    Raises InputError, which calls it `name`: over 50 megapixels, or damaged (Pillow decodes late).
    """
    with _decoding(name, FORMATS):
        _check_pixels(picture, name)
        return _to_rgb(picture)


def photo_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """(height, width) as a person sees it, EXIF applied, from the header alone; None where it has none."""
    try:
        return encoded_size(read_encoded(path))
    except InputError:
        return None


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """As `photo_size`, of a photo's bytes."""
    try:
        with _opened(data, "the photo") as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return image.size if turned else (image.height, image.width)
    except InputError:
        return None


@contextmanager
def _opened(data: bytes, name: str, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """A picture whose header is read and within bounds; what the block raises is an InputError about `name`."""
    if not data:
        raise InputError(f"{name}: the file is empty (0 bytes)")
    with _decoding(name, formats), Image.open(io.BytesIO(data), formats=formats) as image:
        _check_pixels(image, name)
        jpeg = image.format in ("JPEG", "MPO")
        if jpeg and data.count(b"\xff\xda") > MAX_SCANS and _scans(data) > MAX_SCANS:
            raise InputError(f"{name}: a JPEG of more than {MAX_SCANS} scans; save it anew")
        yield image


class _NoWarnings:
    """No warning is shown while any thread is inside.

    `warnings.catch_warnings` alone is not enough: where two threads overlap, the filters that the second one found
    and restores are those of the first.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings(action="ignore")
                self._filters.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_NO_WARNINGS = _NoWarnings()


@contextmanager
def _decoding(name: str, formats: tuple[str, ...]) -> Iterator[None]:
    """Whatever Pillow raises is an InputError about `name`; its warnings (odd EXIF, say) are not shown."""
    cap = f"{name}: its pixels are over the cap of {MAX_PIXELS // 10**6} megapixels"
    try:
        with _NO_WARNINGS:
            yield
    except InputError:
        raise
    except Image.DecompressionBombError:  # Pillow's own cap is higher and comes first
        raise InputError(cap) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture in {', '.join(formats)}, or its header is damaged") from None
    except (*_DAMAGED, zlib.error) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise InputError(f"{name}: the photo is damaged ({reason}); replace it") from None


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{name}: {image.width} x {image.height} pixels are over the cap of {MAX_PIXELS // 10**6} megapixels"
        )


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 (y, x, 3), EXIF applied. White shows through transparent pixels (our choice: as on most pages)."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it to white
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _scans(data: bytes) -> int:
    """Scans of a JPEG up to its end; what follows (a film, say) is not looked at."""
    count, at = 0, 2
    while found := _JPEG_MARKER.search(data, at):
        marker, at = found[0][1], found.end()
        if marker == 0xD9 or count > MAX_SCANS:
            break
        count += marker == 0xDA
        if marker not in _JPEG_ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
    return count
