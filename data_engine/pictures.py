"""The pictures of a folder: which there are, in which shards they go, and a first look at each.

Shards end where a hash of a picture's name says so, so that a new picture changes the shard that it falls into and
no other one. Near-duplicates are found by a 64-bit hash of coarse brightness differences (dHash): each bit says
whether one of 9 x 8 grey cells is brighter than its right neighbour.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_engine.records import Picture
from data_engine.steps.base import digest
from uniresxx.data.own.files import files_below
from uniresxx.data.readers.files import state_of
from uniresxx.errors import InputError
from uniresxx.imaging.decode import decode_photo, read_encoded
from uniresxx.imaging.formats import PHOTO_SUFFIXES

LOOK_VERSION = 1
SAME_LOOK = 3  # of 64 bits: pictures whose hashes differ in no more are near-duplicates (our choice)
BANDS = 4  # of 16 bits: two hashes that differ in 3 bits have a band in common


@dataclass(frozen=True, slots=True)
class Source:
    """A picture's file before anybody has looked at it."""

    name: str
    state: str
    licence: str
    origin: str


def sources(folder: Path, licence: str, table: Path | None) -> list[Source]:
    """The pictures below a folder in order of name; `table` has licence and origin of some. InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --images DIR must hold the pictures")
    known = {} if table is None else _licences(table)
    found = []
    for path in files_below(folder):
        if path.suffix.lower() in PHOTO_SUFFIXES:
            name = path.relative_to(folder).as_posix()
            own, origin = known.pop(name, (licence, ""))
            found.append(Source(name, state_of(path), own, origin))
    if not found:
        raise InputError(
            f"{folder}: holds no picture ({', '.join(PHOTO_SUFFIXES)}), nor do the folders in it"
        )
    if known:
        raise InputError(f"{table}: {sorted(known)[0]} is not below {folder}; {len(known)} such rows")
    return sorted(found, key=lambda item: item.name)


def _licences(table: Path) -> dict[str, tuple[str, str]]:
    """name -> (licence, origin) of a CSV file with the columns picture, licence and, where known, source."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({error})") from None
    if not rows or not {"picture", "licence"} <= rows[0].keys():
        raise InputError(f"{table}: must be CSV with the columns picture, licence and, where known, source")
    return {row["picture"]: (row["licence"] or "not stated", row.get("source") or "") for row in rows}


def in_shards(found: Sequence[Source], size: int) -> Iterator[tuple[Source, ...]]:
    """Groups of about `size`, at most twice as many."""
    group: list[Source] = []
    for item in found:
        group.append(item)
        ends_here = int(hashlib.sha256(item.name.encode()).hexdigest()[:8], 16) % size == 0
        if ends_here or len(group) == 2 * size:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def look_at(source: Source, folder: Path) -> Picture:
    """Read a picture's file and decode it once; InputError where it is none."""
    data = read_encoded(folder / source.name)
    photo = decode_photo(data, source.name)
    height, width = photo.shape[:2]
    return replace(
        unseen(source),
        sha256=hashlib.sha256(data).hexdigest(),
        height=height,
        width=width,
        look=f"{look_hash(photo):016x}",
    )


def unseen(source: Source) -> Picture:
    """The record of a picture that nobody has looked at."""
    return Picture(source.name, source.licence, source.origin)


def look_hash(photo_yx3: np.ndarray) -> int:
    """dHash, 64 bits."""
    grey = Image.fromarray(photo_yx3).convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(grey, dtype=np.int16)
    bits = (cells[:, :-1] > cells[:, 1:]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def near_duplicates(pictures: Sequence[Picture]) -> dict[str, str]:
    """name -> the earlier picture that it repeats: the same bytes, or a hash that differs in `SAME_LOOK` bits.

    The earlier one is always one that stays. Pictures in quarantine are left out.
    """
    first_of_bytes: dict[str, str] = {}
    by_band: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
    repeated: dict[str, str] = {}
    for picture in pictures:
        if picture.failed is not None:
            continue
        look = int(picture.look, 16)
        bands = [(band, look >> (16 * band) & 0xFFFF) for band in range(BANDS)]
        near = (
            name for band in bands for other, name in by_band[band] if (other ^ look).bit_count() <= SAME_LOOK
        )
        original = first_of_bytes.get(picture.sha256) or next(near, None)
        if original is not None:
            repeated[picture.name] = original
            continue
        first_of_bytes[picture.sha256] = picture.name
        for band in bands:
            by_band[band].append((look, picture.name))
    return repeated


def look_key(group: Sequence[Source]) -> str:
    """The name of a shard of first looks."""
    return digest(
        ["look", LOOK_VERSION, [[item.name, item.state, item.licence, item.origin] for item in group]]
    )


def content_key(pictures: Sequence[Picture]) -> str:
    """What all further steps of a shard depend on: the pictures, not when their files were touched."""
    return digest([[p.name, p.sha256, p.licence, p.origin, p.failed] for p in pictures])
