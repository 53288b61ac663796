"""Photos that lie inside other files: the bytes of one, wherever it is.

Nothing is ever unpacked onto the disk: a photo is read from its place and decoded in memory, so no archive can
write anywhere.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from uniresxx.data.readers.cris import lmdb_photo
from uniresxx.data.readers.hub import parquet_photo
from uniresxx.errors import InputError
from uniresxx.imaging.decode import MAX_BYTES, decode_photo, encoded_header, read_encoded, turned_raw
from uniresxx.types import ImageRecord, PhotoInside


def photo_of(record: ImageRecord) -> np.ndarray:
    """Pixels of a record, uint8 (y, x, 3); InputError where they are missing or of another size.

    They are in the frame of the annotations: where the record's size is that of the photo as it is stored, and not
    as a person sees it (its EXIF orientation applied), it is not turned.
    """
    size = record.height, record.width
    if record.pixels is not None:
        photo, name = record.pixels, f"image {record.image_id}"
    elif record.inside is not None or record.path is not None:
        data, name = encoded_bytes(record.inside or str(record.path))
        photo = decode_photo(data, name)
        if photo.shape[:2] != size:
            header = encoded_header(data, name)
            if header.stored == size:
                photo = turned_raw(photo, header.orientation)
    else:
        raise InputError(f"image {record.image_id}: the record holds neither pixels nor a photo's place")
    if photo.shape != (*size, 3):
        raise InputError(
            f"{name}: the photo is {photo.shape[0]} x {photo.shape[1]} (height x width), "
            f"but its annotations say {record.height} x {record.width}"
        )
    return photo


def encoded_bytes(photo: str | PhotoInside) -> tuple[bytes, str]:
    """(bytes, name for errors) of a photo, in a file of its own or inside another. InputError as `encoded_photo`."""
    if isinstance(photo, str):
        return read_encoded(photo), photo
    return encoded_photo(photo), f"{photo.file}: {photo.name}"


def encoded_photo(photo: PhotoInside) -> bytes:
    """The photo's bytes as they were encoded; InputError naming file and photo where they cannot be had.

    Needs no state, so any number of processes and threads may call it.
    """
    if photo.kind == "tar":
        return _from_shard(photo)
    if photo.kind == "lmdb":
        return lmdb_photo(_there(photo), photo.key)
    if photo.kind == "parquet" and photo.key.isdecimal():
        return parquet_photo(_there(photo), int(photo.key))
    raise InputError(
        f"{photo.file}: {photo.name}: no place of the kind {photo.kind!r} {photo.key!r} is known"
    )


def _there(photo: PhotoInside) -> Path:
    path = Path(photo.file)
    if not path.exists():
        raise InputError(f"{path}: no such file; the photo {photo.name} lies in it, --images DIR names where")
    return path


def _from_shard(photo: PhotoInside) -> bytes:
    name = f"{photo.file}: {photo.name}"
    if not 0 < photo.length <= MAX_BYTES or photo.offset < 0:
        raise InputError(f"{name}: {photo.length} bytes at {photo.offset} are no photo's place")
    try:
        handle = os.open(photo.file, os.O_RDONLY)
        try:
            data = os.pread(handle, photo.length, photo.offset)
        finally:
            os.close(handle)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: cannot be read ({error}); copy the whole store again") from None
    if len(data) != photo.length or zlib.crc32(data) != photo.crc:
        raise InputError(f"{name}: differs from what was packed; copy the store again, or prepare it again")
    return data
