"""Photos as a person sees them: RGB, EXIF orientation applied, checked before a pixel is decoded.

Only JPEG, PNG, WEBP, TIFF, BMP and GIF are opened, HEIC and AVIF where Pillow's plug-ins are installed, and the first
frame of each (`imaging.formats`). Pillow reads the size from the header; it is capped before anything is decoded.
Errors: InputError, one line that names the file, and says what it is where it is no photo.

A photo has two frames: raw (as it is stored) and upright (its EXIF orientation applied). Everything outside this
file sees the upright one, except annotations that were made in the other (`turned_upright`, `turned_raw`).
"""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from uniresxx.errors import InputError, MissingPhotoError
from uniresxx.imaging.formats import formats_for, what_it_is

# our choice: what cameras, scanners and annotation tools write; each further codec of libtiff is one more to trust
TIFF_CODECS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", "group4")
MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 2**20
MAX_SCANS = 64  # our choice: encoders write 10 to 20; every scan of a few bytes costs a walk over all pixels
HEAD_BYTES = 1024  # that say what a file is
FIRST_CHUNK_END = 33  # of a PNG: 8 bytes of signature, 25 of header
_JPEG_ALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # within a scan: not a byte of the picture
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it says of a bad file is in our errors
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)


def read_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a photo file to uint8 (y, x, 3) RGB with its EXIF orientation applied.

    Raises InputError naming the file: missing, a folder, empty, another format, over 50 megapixels, damaged.
    """
    return decode_photo(read_encoded(path), str(path))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Bool (y, x) of a PNG mask: every value but 0 is in. InputError as `read_photo`.

    The value is grey, the number of a palette's colour, or any channel of a colour. A transparent pixel is out; in a
    picture that is black all over, alpha alone is the mask.
    """
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
    check_photo_file(place)
    try:
        return place.read_bytes()
    except OSError as error:
        raise InputError(f"{str(place)!r}: cannot be read ({error})") from None


def check_photo_file(place: Path) -> None:
    """InputError naming the file where it is missing, no regular file, or over the cap for photos."""
    try:
        if not place.exists():
            raise MissingPhotoError(f"{place}: no such photo")
        if place.is_dir():
            raise InputError(f"{place}: is a folder, not a photo; name one with photos in it, or a photo")
        if not place.is_file():
            raise InputError(f"{place}: is not a regular file")
        if place.stat().st_size > MAX_BYTES:
            raise InputError(f"{place}: is over the cap of {MAX_BYTES} bytes for a photo")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(place)!r}: cannot be read ({error})") from None


def decode_photo(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of a photo, as `read_photo` does; `name` is what an error calls it."""
    with _opened(data, name) as image:
        return _to_rgb(image, name)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of a mask, as `read_mask` does; `name` is what an error calls it."""
    with _opened(data, name, ("PNG",)) as image:
        if image.mode in ("1", "L", "P", "I", "I;16", "I;16B"):  # of a palette, the numbers
            return np.asarray(image) > 0
        bands_yxc = np.asarray(image if image.mode in ("LA", "RGB", "RGBA") else image.convert("RGBA"))
        if image.mode == "RGB":
            return np.asarray(bands_yxc.any(axis=2))
        colour_yx, shown_yx = bands_yxc[..., :-1].any(axis=2), bands_yxc[..., -1] > 0
        return (colour_yx & shown_yx) if colour_yx.any() or shown_yx.all() else shown_yx


def rgb_of(picture: Image.Image, name: str = "the picture") -> np.ndarray:
    """uint8 (y, x, 3) of an opened Pillow picture: the pixels `read_photo` gives for its file.

    Raises InputError, which calls it `name`: over 50 megapixels, or damaged (Pillow decodes late).
    """
    with _decoding(name):
        _check_pixels(picture, name)
        return _to_rgb(picture, name)


@dataclass(frozen=True, slots=True)
class PhotoHeader:
    """What a photo's header says: its (height, width) as stored, and its EXIF orientation, 1 (upright) to 8."""

    stored: tuple[int, int]
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) as a person sees it."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def photo_header(path: str | os.PathLike[str]) -> PhotoHeader:
    """The header of a photo's file; no pixel is decoded, and only what the header needs is read.

    Raises InputError as `read_photo` does.
    """
    check_photo_file(Path(path))
    with _decoding(str(path)), open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
        with _recognised(stream, head, _formats(head, str(path)), str(path)) as image:
            return _header_of(image, str(path))


def encoded_header(data: bytes, name: str = "the photo") -> PhotoHeader:
    """As `photo_header`, of a photo's bytes."""
    with _opened(data, name) as image:
        return _header_of(image, name)


def _header_of(image: Image.Image, name: str) -> PhotoHeader:
    _check_pixels(image, name)
    if isinstance(image, PngImagePlugin.PngImageFile) and not (image.fp and _needs_decoding(image.fp)):
        exif = Image.Image.getexif(image)  # its own method decodes every pixel
    else:
        exif = image.getexif()
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its size has the orientation applied
        tags = image.tag_v2
        return PhotoHeader((tags[TiffImagePlugin.IMAGELENGTH], tags[TiffImagePlugin.IMAGEWIDTH]), orientation)
    return PhotoHeader((image.height, image.width), orientation)


def _needs_decoding(png: IO[bytes]) -> bool:
    """Whether only decoding tells what a PNG's header says; the place in the file stays.

    A chunk behind the pixels may hold EXIF data, and a second header makes the file a damaged one.
    """
    before, pixels = png.tell(), False
    png.seek(FIRST_CHUNK_END)
    try:
        while len(head := png.read(8)) == 8 and head[4:] != b"IEND":
            kind = head[4:]
            pixels = pixels or kind == b"IDAT"
            if kind == b"IHDR" or (pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
                return True
            png.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return False
    finally:
        png.seek(before)


def turned_upright(array_yx: np.ndarray, orientation: int) -> np.ndarray:
    """An array in a photo's raw frame, (y, x) or (y, x, channels), in its upright frame (EXIF, tag 0x0112)."""
    if orientation in (5, 7):
        array_yx = array_yx.swapaxes(0, 1)
        return array_yx if orientation == 5 else array_yx[::-1, ::-1]
    if orientation in (3, 6, 8):
        return np.rot90(array_yx, {3: 2, 6: -1, 8: 1}[orientation])
    return {2: array_yx[:, ::-1], 4: array_yx[::-1]}.get(orientation, array_yx)


def turned_raw(array_yx: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `turned_upright`."""
    return turned_upright(array_yx, {6: 8, 8: 6}.get(orientation, orientation))


def photo_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """(height, width) as a person sees it, EXIF applied, from the header alone; None where it has none."""
    try:
        return photo_header(path).upright
    except InputError:
        return None


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """As `photo_size`, of a photo's bytes."""
    try:
        return encoded_header(data).upright
    except InputError:
        return None


@contextmanager
def _opened(data: bytes, name: str, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """A picture whose header is read and within bounds; what the block raises is an InputError about `name`.

    `formats`: those that are opened; None: of photos.
    """
    if not data:
        raise InputError(f"{name}: the file is empty (0 bytes)")
    head = data[:HEAD_BYTES]
    opened = formats or _formats(head, name)
    with _decoding(name), _recognised(io.BytesIO(data), head, opened, name) as image:
        _check_pixels(image, name)
        jpeg = image.format in ("JPEG", "MPO")
        if jpeg and data.count(b"\xff\xda") > MAX_SCANS and _scans(data) > MAX_SCANS:
            raise InputError(f"{name}: a JPEG of more than {MAX_SCANS} scans; save it anew")
        yield image


def _formats(head: bytes, name: str) -> tuple[str, ...]:
    """The formats in which a photo with these first bytes is opened; InputError where a plug-in is missing."""
    try:
        return formats_for(head)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _recognised(stream: IO[bytes], head: bytes, formats: tuple[str, ...], name: str) -> Image.Image:
    """The opened picture; InputError, which says what the file is, where it has none of the formats."""
    try:
        return Image.open(stream, formats=formats)
    except UnidentifiedImageError:
        kind = what_it_is(head)
        found = f"is {kind}, not a picture" if kind else "not a picture"
        damaged = "" if kind else ", or its header is damaged"
        raise InputError(f"{name}: {found} in {', '.join(formats)}{damaged}") from None


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
def _decoding(name: str) -> Iterator[None]:
    """Whatever Pillow raises is an InputError about `name`; its warnings (odd EXIF, say) are not shown."""
    cap = f"{name}: its pixels are over the cap of {MAX_PIXELS // 10**6} megapixels"
    try:
        with _NO_WARNINGS:
            yield
    except InputError:
        raise
    except Image.DecompressionBombError:  # Pillow's own cap is higher and comes first
        raise InputError(cap) from None
    except (*_DAMAGED, zlib.error) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise InputError(f"{name}: the photo is damaged ({reason}); replace it") from None


def _check_pixels(image: Image.Image, name: str) -> None:
    """InputError where decoding would take more than the header's plain size allows."""
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{name}: {image.width} x {image.height} pixels are over the cap of {MAX_PIXELS // 10**6} megapixels"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        codec = image.info.get("compression", "raw")
        if codec not in TIFF_CODECS:
            raise InputError(f"{name}: a TIFF compressed as {codec!r}; save it as PNG")
        tile = [image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > MAX_PIXELS:
            raise InputError(f"{name}: a TIFF with tiles of {tile[0]} x {tile[1]} pixels; save it as PNG")


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """uint8 (y, x, 3), EXIF applied. White shows through transparent pixels (our choice: as on most pages)."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise InputError(
            f"{name}: its pixels are floating-point numbers of unknown range; save it as 8-bit PNG"
        )
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
