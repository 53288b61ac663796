"""Photos as a person sees them: RGB, EXIF orientation applied, checked before a pixel is decoded.

Only JPEG, PNG and WEBP are opened, the first frame of each; the size is read from the header and capped.
Errors: InputError, one line that names the file.
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

import numpy as np
from PIL import ExifTags, Image, ImageOps

from uniresxx.errors import InputError, MissingPhotoError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 2**20
MAX_SCANS = 64  # our choice: encoders write 10 to 20; every scan of a few bytes costs a walk over all pixels
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF markers
_JPEG_ALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # within a scan: not a byte of the picture
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a photo file to uint8 (y, x, 3) RGB with its EXIF orientation applied.

    Raises InputError naming the file: missing, a folder, empty, another format, over 50 megapixels, damaged.
    """
    return decode_photo(read_encoded(path), str(path))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Bool (y, x) of a PNG mask: pixels whose grey value is above 0. InputError as `read_photo`."""
    return decode_mask(read_encoded(path), str(path))


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of a mask, as `read_mask` does; `name` is what an error calls it."""
    size = _checked_size(data, name)
    try:
        with _quiet(), Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            _refuse_two_sizes(image, size)
            plain = image if image.mode in ("1", "L", "I", "I;16", "I;16B") else image.convert("L")
            return np.asarray(plain) > 0
    except _DECODER_ERRORS as error:
        raise InputError(f"{name}: the mask is no readable PNG ({_reason(error)})") from None


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
        data = place.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(place)!r}: cannot be read ({error})") from None
    return data


def decode_photo(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of a photo, as `read_photo` does; `name` is what an error calls it."""
    size = _checked_size(data, name)
    with _decoding(name), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _refuse_two_sizes(image, size)
        return _to_rgb(image)


def rgb_of(picture: Image.Image, name: str = "the picture") -> np.ndarray:
    """uint8 (y, x, 3) of an opened Pillow picture: the pixels `read_photo` gives for its file.

    Raises InputError, which calls it `name`: over 50 megapixels, or damaged (Pillow decodes late).
    """
    if picture.width * picture.height > MAX_PIXELS:
        raise InputError(_over_the_cap(name, picture.width, picture.height))
    with _decoding(name):
        return _to_rgb(picture)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings: about harmless oddities such as EXIF it cannot parse, or what we refuse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever Pillow raises is an InputError about `name`."""
    try:
        with _quiet():
            yield
    except _DECODER_ERRORS as error:
        raise InputError(f"{name}: the photo is damaged ({_reason(error)}); replace it") from None


def _over_the_cap(name: str, width: int, height: int) -> str:
    return f"{name}: {width} x {height} pixels are over the cap of {MAX_PIXELS // 10**6} megapixels"


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


def _checked_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) from the header; InputError where there is none or it is over the cap."""
    if not data:
        raise InputError(f"{name}: the file is empty (0 bytes)")
    size = _header_size(data)
    if size is None:
        raise InputError(f"{name}: not a photo in {', '.join(FORMATS)}, or its header is damaged")
    width, height = size
    if width * height > MAX_PIXELS:
        raise InputError(_over_the_cap(name, width, height))
    if data.count(b"\xff\xda") > MAX_SCANS and _scans(data) > MAX_SCANS:
        raise InputError(f"{name}: a JPEG of more than {MAX_SCANS} scans; save it anew")
    return width, height


def _refuse_two_sizes(image: Image.Image, size: tuple[int, int]) -> None:
    """ValueError where Pillow found another size than the first header, which was checked against the cap."""
    if image.size != size:
        raise ValueError(f"it says {size[0]} x {size[1]} pixels and {image.width} x {image.height}")


def photo_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """(height, width) as a person sees it, EXIF applied, from the header alone; None where it has none."""
    try:
        with open(path, "rb") as file:
            return encoded_size(file.read(2**20))
    except _DECODER_ERRORS:
        return None


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """As `photo_size`, of a photo's bytes (its first megabyte is enough)."""
    try:
        size = _header_size(data)
        if size is None or size[0] * size[1] > MAX_PIXELS:
            return None
        with _quiet(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_two_sizes(image, size)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except _DECODER_ERRORS:
        return None
    return size if turned else (size[1], size[0])


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


def _header_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the header of a JPEG, PNG or WEBP; None where it is none of them or broken."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        size = struct.unpack(">II", data[16:24])
    elif data.startswith(b"\xff\xd8\xff"):
        size = _jpeg_size(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = _webp_size(data)
    else:
        return None
    return size if min(size) > 0 else None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Size in the first frame header; (0, 0) where there is none."""
    at = 2
    while at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):  # junk and fill bytes between segments are allowed
            at += 1
        elif marker in _JPEG_SIZES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        elif marker in _JPEG_ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return 0, 0


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


def _webp_size(data: bytes) -> tuple[int, int]:
    """Size in the first chunk (VP8, VP8L or VP8X); (0, 0) where it is broken."""
    kind = data[12:16]
    if len(data) < 30:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0
