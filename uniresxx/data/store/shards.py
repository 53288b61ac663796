"""Photos of a store in tar shards: packed once each, found by row, read in place.

`photos-00000.tar`, … are plain tar files (ustar; photos as they were, byte for byte, under made-up safe names),
`photos.bin` holds one entry per row of the store: shard, height, width, CRC-32, offset, length, sha256. A row
is found by its number and read with one `pread`; nothing is unpacked, ever. Photos with the same bytes are
stored once. Packing may stop anywhere: entries are written after the photos that they name, and what no entry
names is cut off when it goes on.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from uniresxx.data.store.photos import encoded_photo
from uniresxx.errors import InputError
from uniresxx.files import safe_name
from uniresxx.imaging import decode as images
from uniresxx.imaging.formats import FORMATS
from uniresxx.types import PhotoInside

INDEX = "photos.bin"
ENTRY = struct.Struct("<IIIIQQ32s")
NO_PHOTO = 2**32 - 1  # the shard of a row without one: drawn pictures
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)  # of a tar file
SUFFIXES = {
    b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"
}  # fmt: skip
FLUSH_ROWS = 256  # how much is done again after a crash
SHARD_BYTES = 10**9


class Entry(NamedTuple):
    """Where the photo of a row lies and what it is."""

    shard: int = NO_PHOTO
    height: int = 0  # as a person sees it, EXIF applied
    width: int = 0
    crc: int = 0
    offset: int = 0
    length: int = 0
    sha256: bytes = bytes(32)


def shard_name(number: int) -> str:
    """File name of a shard: made from its number, never read from a file."""
    return f"photos-{number:05d}.tar"


@dataclass(frozen=True)
class Shards:
    """The shards of a store, read only."""

    folder: Path
    count: int
    index: pa.Buffer

    @classmethod
    def open(cls, folder: Path, photos: Mapping[str, Any], rows: int) -> Shards:
        """Check the files against `photos`, the store's metadata of them, and map the index.

        Raises InputError where one is missing or of another size.
        """
        sizes = {shard_name(number): size for number, size in enumerate(photos["shards"])}
        for name, size in {INDEX: max(rows, 1) * ENTRY.size, **sizes}.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                wrong = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise InputError(f"{folder}: {name} {wrong}; copy the whole store again, or prepare it again")
        return cls(folder, len(sizes), pa.memory_map(str(folder / INDEX)).read_buffer())

    def entry(self, row: int) -> Entry:
        """The entry of a row, as it is in the file."""
        return Entry(*ENTRY.unpack_from(self.index, row * ENTRY.size))

    def photo(self, row: int, name: str) -> PhotoInside:
        """The place of a row's photo, which its data set calls `name`; InputError where the index is damaged."""
        entry = self.entry(row)
        if entry.shard >= self.count:
            raise InputError(f"{self.folder}: {INDEX} is damaged at row {row}; prepare the store again")
        file = self.folder / shard_name(entry.shard)
        return PhotoInside("tar", str(file), str(row), name, entry.offset, entry.length, entry.crc)


def pack_photos(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    count: int,
    image_root: Path | None,
    shard_bytes: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Pack the photos of `count` rows (their `path` and `inside` as a store has them) into `folder`.

    Goes on where an earlier call was stopped. Returns what a store's metadata says of its shards. Raises
    InputError naming the photo where one is not there or is none, OSError where the disk is full.
    """
    with _Packing(folder, shard_bytes) as packing:
        for number, row in enumerate(rows):
            source = _source_of(row, image_root)
            if number < packing.done:
                packing.remember(number, source)
            else:
                packing.add(source)
            if (number + 1) % FLUSH_ROWS == 0 or number + 1 == count:
                packing.flush()
                progress("packing photos", number + 1, count)
        return packing.finish()


def _source_of(row: Mapping[str, Any], image_root: Path | None) -> str | PhotoInside | None:
    """Where a row's photo lies now: a path, a place in another file, or None for drawn pictures."""
    base, path, inside = image_root or Path(), row["path"], row["inside"]
    if inside is not None:
        return PhotoInside(**{**inside, "file": str(base / inside["file"])})
    return None if path is None else str(base / path)


class _Packing:
    """Shards being written. `entries` are those of the rows done, whole ones only."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.entries = _entries_so_far(folder)
        self.done = len(self.entries)
        self.by_source: dict[str | PhotoInside, Entry] = {}
        self.by_content = {item.sha256: item for item in self.entries if item.shard != NO_PHOTO}
        self.ends = _repaired(folder, self.by_content.values())
        self.waiting: list[Entry] = []
        self.shard = self._open_last()
        self.index = (folder / INDEX).open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.index.close()
        self.shard.close()

    def _open_last(self) -> Any:
        """The shard that is written to; the one before it gets its end first."""
        if not self.ends:
            self.ends.append(0)
        return (self.folder / shard_name(len(self.ends) - 1)).open("ab")

    def remember(self, number: int, source: str | PhotoInside | None) -> None:
        """The photo of a row that was done before."""
        if source is not None:
            self.by_source[source] = self.entries[number]

    def add(self, source: str | PhotoInside | None) -> None:
        """Pack the photo of the next row, unless its bytes are there."""
        entry = Entry() if source is None else self.by_source.get(source)
        if entry is None:
            assert source is not None
            entry = self.by_source[source] = self._write(source)
        self.waiting.append(entry)

    def _write(self, source: str | PhotoInside) -> Entry:
        name = source if isinstance(source, str) else source.name
        try:
            data = images.read_encoded(source) if isinstance(source, str) else encoded_photo(source)
            size = images.encoded_size(data)
            if size is None:
                raise InputError(f"{name}: is no photo in {', '.join(FORMATS)}, or is over the cap")
        except InputError as error:
            raise InputError(
                f"{error}. Every photo must be there to be packed: add it and give the same command "
                "again, or leave out --pack-images"
            ) from None
        digest = hashlib.sha256(data).digest()
        if digest not in self.by_content:
            shard, offset = self._append(name, data)
            self.by_content[digest] = Entry(shard, *size, zlib.crc32(data), offset, len(data), digest)
        return self.by_content[digest]

    def _append(self, name: str, data: bytes) -> tuple[int, int]:
        """(shard, offset) of a photo's bytes: in the last shard, or in a new one where that is full."""
        member = tarfile.TarInfo(
            f"{len(self.by_content):07d}-{safe_name(Path(name).stem)}{SUFFIXES.get(data[:2], '')}"
        )
        member.size = len(data)
        padded = data + bytes(-len(data) % BLOCK)
        if self.ends[-1] and self.ends[-1] + BLOCK + len(padded) + len(END) > self.shard_bytes:
            self._end_shard()
            self.ends.append(0)
            self.shard = self._open_last()
        self.shard.write(member.tobuf(tarfile.USTAR_FORMAT))
        self.shard.write(padded)
        offset = self.ends[-1] + BLOCK
        self.ends[-1] = offset + len(padded)
        return len(self.ends) - 1, offset

    def _end_shard(self) -> None:
        self.shard.write(END)
        self._sync(self.shard)
        self.shard.close()

    def flush(self) -> None:
        """Photos on the disk, then the entries that name them."""
        self._sync(self.shard)
        self.index.write(b"".join(ENTRY.pack(*item) for item in self.waiting))
        self._sync(self.index)
        self.waiting.clear()

    @staticmethod
    def _sync(stream: Any) -> None:
        stream.flush()
        os.fsync(stream.fileno())

    def finish(self) -> dict[str, Any]:
        """End the last shard; what the metadata says of all."""
        if not self.done and not self.index.tell():  # an empty file cannot be mapped
            self.waiting.append(Entry())
            self.flush()
        self._end_shard()
        return {
            "shards": [end + len(END) for end in self.ends],
            "photos": len(self.by_content),
            "bytes": sum(item.length for item in self.by_content.values()),
        }


def _entries_so_far(folder: Path) -> list[Entry]:
    """The entries an earlier call left, the file cut to whole ones."""
    path = folder / INDEX
    if not path.is_file():
        return []
    whole = path.stat().st_size // ENTRY.size * ENTRY.size
    os.truncate(path, whole)
    return [Entry(*item) for item in ENTRY.iter_unpack(path.read_bytes())]


def _repaired(folder: Path, entries: Iterable[Entry]) -> list[int]:
    """Where each shard's last photo ends; what lies behind it is cut off. InputError where a shard is short."""
    ends: dict[int, int] = {}
    for item in entries:
        end = item.offset + item.length + -item.length % BLOCK
        ends[item.shard] = max(ends.get(item.shard, 0), end)
    last = max(ends, default=0)
    for path in folder.glob("photos-*.tar"):
        if not (digits := path.stem.removeprefix("photos-")).isdecimal():
            continue
        number = int(digits)
        end = ends.get(number, 0)
        if path.stat().st_size < end:
            raise InputError(f"{path}: is shorter than when it was written; --fresh starts over")
        if number > last:
            path.unlink()
        elif number == last or path.stat().st_size != end + len(END):
            os.truncate(path, end)
            if number < last:
                with path.open("ab") as stream:
                    stream.write(END)
    return [ends[number] for number in sorted(ends)]
