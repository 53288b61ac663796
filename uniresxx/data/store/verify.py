"""Checking a store: every photo and every mask."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from uniresxx.data.store.photos import encoded_bytes
from uniresxx.data.store.read import Store
from uniresxx.data.store.rows import row_digest
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.decode import PhotoHeader, decode_photo, encoded_header
from uniresxx.types import RLE, Granularity, ImageRecord, PhotoInside

Size = tuple[int, int]
Photo = str | PhotoInside


def check_store(
    store: Store, threads: int | None = None, frames: Counter[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """(rows done, what is wrong with them) per record batch; nothing is repaired.

    First the files against their sha256, then every row against its digest, every mask (valid code, the
    photo's size, the record's area, no empty target) and every photo once: it is there (in its file, the LMDB,
    the parquet file, or the shard, whose CRC must match), decodes, and has the record's size. Photos with an EXIF
    orientation are counted in `frames`, by the frame ("upright" or "raw") whose size their records have.
    """
    yield 0, _check_files(store)
    seen: dict[Photo, PhotoHeader | str] = {}  # photo -> header, or what is wrong with it
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for number, rows in store.batches():
            try:
                content = store.batch(number).to_pylist()
                records = [store.record_of(at, row) for at, row in zip(rows, content, strict=True)]
            except (InputError, ValueError, TypeError, KeyError) as error:
                yield rows.stop, [f"rows {rows.start} to {rows.stop - 1}: {error}"]
                continue
            found = dict.fromkeys(_photo_of(item) for item in records)
            new = [photo for photo in found if photo is not None and photo not in seen]
            seen.update(zip(new, pool.map(_decode, new), strict=True))
            if frames is not None:
                sizes = {_photo_of(item): (item.height, item.width) for item in records}
                frames.update(filter(None, (_turned_frame(seen[photo], sizes[photo]) for photo in new)))
            pairs = zip(content, records, strict=True)
            yield rows.stop, [line for row, record in pairs for line in _check_row(row, record, seen)]


def _check_files(store: Store) -> list[str]:
    wrong = []
    for name, entry in store.meta["files"].items():
        with (store.path / name).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                wrong.append(f"{store.path / name}: differs from what was written; prepare the store again")
    return wrong


def _photo_of(record: ImageRecord) -> Photo | None:
    return record.path if record.inside is None else record.inside


def _decode(photo: Photo) -> PhotoHeader | str:
    """The photo's header, or what is wrong with the photo."""
    try:
        data, name = encoded_bytes(photo)
        decode_photo(data, name)
        return encoded_header(data, name)
    except InputError as error:
        return str(error)


def _turned_frame(found: PhotoHeader | str, size: Size) -> str | None:
    """The frame that a record of a photo with an orientation is in; None for every other photo."""
    if isinstance(found, str) or found.orientation == 1:
        return None
    return "raw" if size == found.stored != found.upright else "upright"


def _check_row(
    row: Mapping[str, Any], record: ImageRecord, seen: Mapping[Photo, PhotoHeader | str]
) -> Iterator[str]:
    who, size = f"{row['split']}: image {record.image_id}", (record.height, record.width)
    if row_digest(row) != row["digest"]:
        yield f"{who}: the row differs from what was written"
    photo = _photo_of(record)
    if photo is not None and (wrong := _wrong_size(seen[photo], size, photo)):
        yield f"{who}: {wrong}"
    if photo is None and record.pixels is None:
        yield f"{who}: has neither a photo nor pixels"
    for item in record.expressions:
        for line in _check_mask(item.rle, item.granularity, size, item.area):
            yield f"{who}: {item.expression_id}: {line}"
    for dialogue in record.dialogues:
        for phrase in (phrase for turn in dialogue.turns for phrase in turn.phrases):
            for line in _check_mask(phrase.rle, phrase.granularity, size):
                yield f"{who}: {dialogue.dialogue_id}: {phrase.text!r}: {line}"


def _wrong_size(found: PhotoHeader | str, size: Size, photo: Photo) -> str | None:
    if isinstance(found, str) or size in (found.upright, found.stored):
        return found if isinstance(found, str) else None
    name = photo if isinstance(photo, str) else f"{photo.file}: {photo.name}"
    height, width = found.upright
    return f"{name} is {height} x {width} (height x width), the record says {size[0]} x {size[1]}"


def _check_mask(
    rle: RLE | None, granularity: Granularity, size: Size, stated: int | None = None
) -> Iterator[str]:
    """What is wrong with a mask; `stated` is the area in the record, where it has one."""
    if (rle is None) != (granularity is Granularity.NONE):
        yield f"is {granularity} and has {'no mask' if rle is None else 'a mask'}"
    if rle is None:
        if stated:
            yield f"has an area of {stated} and no mask"
        return
    try:
        area = masks.area(masks.validate(rle, size))
    except InputError as error:
        yield str(error)
        return
    if area == 0:
        yield "the mask covers no pixel"
    if stated is not None and area != stated:
        yield f"the mask covers {area} pixels, the record says {stated}"
