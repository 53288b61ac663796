"""The store: images with their expressions, in one memory-mapped Arrow file that opens at once.

A store is a folder: `records.arrow` (Arrow IPC, one row per image and split), `index.bin` (where each record
batch lies and its CRC-32) and `meta.json` (format version, name, fingerprint, counts, guard report).
Opening reads `meta.json` and maps the others; rows are parsed when they are asked for, and a batch is checked
against its CRC before Arrow sees it. Photos stay where they are: rows hold paths below an image root. Or the
store has them in tar shards (`shards.py`), found by one entry of `photos.bin` per row; the rows and their
fingerprint are the same.
"""

from __future__ import annotations

import os.path
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from uniresxx.data.readers.folders import PhotoFinder
from uniresxx.data.store import shards
from uniresxx.data.store.folder import INDEX, RECORDS, read_meta
from uniresxx.data.store.rows import SCHEMA, record_of
from uniresxx.errors import InputError, NotThereError
from uniresxx.types import ImageRecord

INDEX_ENTRY = struct.Struct("<QQII")  # offset, length, rows, CRC-32 of a record batch message


class Store:
    """A prepared data set, read only. Any number of processes may open it; it pickles as its path."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.path, self._images = path, images
        self.meta = read_meta(path)
        self._splits: dict[str, dict[str, Any]] = self.meta["splits"]
        self._starts = [item["start"] for item in self._splits.values()]
        root = self.meta["image_root"]
        if root is not None:  # relative to the store
            root = Path(os.path.normpath(os.path.join(os.path.realpath(path), root)))
        self.image_root: Path | None = root if images is None else images
        self._data = pa.memory_map(str(path / RECORDS)).read_buffer()
        self._index = pa.memory_map(str(path / INDEX)).read_buffer()
        packed = self.meta.get("photos")
        self.shards = None if packed is None else shards.Shards.open(path, packed, len(self))
        # photos that were not there when the store was made may have arrived in another folder
        incomplete = self.shards is None and self.meta.get("photos_missing", 0) > 0
        self._finder = PhotoFinder(self.image_root) if incomplete and self.image_root is not None else None
        self._checked: set[int] = set()
        self._last: tuple[int, pa.RecordBatch] | None = None

    @classmethod
    def open(cls, path: Path, images: Path | None = None) -> Store:
        """Open a store without reading a row. `images` stands for the image root it was prepared from.

        Raises InputError: no store, another format version, damaged metadata, files cut short.
        """
        return cls(Path(path), images)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path, self._images)

    @property
    def name(self) -> str:
        """What was prepared: NAME or NAME/SPLIT."""
        return self.meta["name"]

    @property
    def fingerprint(self) -> str:
        """sha256 over the canonical content: equal for equal records, wherever the photos lie."""
        return self.meta["fingerprint"]

    @property
    def splits(self) -> list[str]:
        """Splits in the order of their rows."""
        return list(self._splits)

    def __len__(self) -> int:
        return int(self.meta["rows"])

    def __getitem__(self, index: int) -> ImageRecord:
        return self.record_of(index, self.row(index))

    def record_of(self, index: int, row: Mapping[str, Any]) -> ImageRecord:
        """The record of row `index` (its content is `row`), its photo in the shards where the store has any."""
        record = record_of(row, self.image_root)
        if self._finder is not None and record.path is not None:
            record = replace(record, path=str(self._finder.find_again(row["path"])))
        if self.shards is None or (record.path is None and record.inside is None):
            return record
        name = record.inside.name if record.inside is not None else Path(str(record.path)).name
        return replace(record, path=None, inside=self.shards.photo(index % len(self), name))

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def count_photos(self) -> tuple[int, int, list[Path]]:
        """(photos that are there, rows that have one, folders of the missing ones), looked at now."""
        root, found, count = self.image_root or Path(), 0, 0
        folders: dict[Path, None] = {}
        for number, _ in self.batches():
            for place in photo_places(self.batch(number)):
                path = root / place if self._finder is None else self._finder.find_again(place)
                count += 1
                found += path.exists()
                if not path.exists():
                    folders[path.parent] = None
        return found, count, list(folders)

    def rows(self, split: str | None = None) -> range:
        """Row numbers of a split, of all where None; NotThereError lists the splits."""
        if split is None:
            return range(len(self))
        if split not in self._splits:
            raise NotThereError(f"{self.path}: has no split {split!r}; it has {', '.join(self._splits)}")
        found = self._splits[split]
        return range(found["start"], found["start"] + found["rows"])

    def records(self, split: str | None = None) -> StoreRecords:
        """The records of a split, of all where None; parsed one by one as they are asked for."""
        return StoreRecords(self, self.rows(split))

    def batches(self) -> Iterator[tuple[int, range]]:
        """(number, rows) of every record batch; a batch never spans two splits."""
        step = self.meta["rows_per_batch"]
        for split in self._splits.values():
            stop = split["start"] + split["rows"]
            for number, start in enumerate(range(split["start"], stop, step), split["first_batch"]):
                yield number, range(start, min(start + step, stop))

    def place(self, index: int) -> tuple[int, int]:
        """(record batch, row in it) of a row; IndexError where there is no such row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        split = list(self._splits.values())[bisect_right(self._starts, index) - 1]
        batch, row = divmod(index - split["start"], self.meta["rows_per_batch"])
        return split["first_batch"] + batch, row

    def row(self, index: int) -> dict[str, Any]:
        """A row as it is stored; negative numbers count from the end. InputError where it is damaged."""
        number, row = self.place(index + len(self) if index < 0 else index)
        return self.batch(number).slice(row, 1).to_pylist()[0]

    def batch(self, number: int) -> pa.RecordBatch:
        """A record batch, zero-copy; InputError where its bytes are not those that were written."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        offset, length, rows, crc = INDEX_ENTRY.unpack_from(self._index, number * INDEX_ENTRY.size)
        damaged = f"{self.path}: {RECORDS} is damaged in record batch {number}; prepare the store again"
        if offset + length > len(self._data):
            raise InputError(damaged)
        message = self._data.slice(offset, length)
        if number not in self._checked and zlib.crc32(message) != crc:
            raise InputError(damaged)
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), SCHEMA)
            if number not in self._checked:
                batch.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{damaged} ({' '.join(str(error).split())[:80]})") from None
        if batch.num_rows != rows:
            raise InputError(damaged)
        self._checked.add(number)
        self._last = (number, batch)
        return batch


def photo_places(batch: pa.RecordBatch) -> Iterator[str]:
    """The files that the photos of a record batch are or lie in: below the image root, or absolute."""
    for row in batch.select(["path", "inside"]).to_pylist():
        place = row["path"] if row["inside"] is None else row["inside"]["file"]
        if place is not None:
            yield place


class StoreRecords(Sequence[ImageRecord]):
    """Some rows of a store as a sequence of records that holds none of them."""

    def __init__(self, store: Store, rows: Sequence[int]) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> StoreRecords: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | StoreRecords:
        if isinstance(index, slice):
            return StoreRecords(self.store, self.rows[index])
        return self.store[self.rows[index]]
