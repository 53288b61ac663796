"""Own data as records by split, with the lines that describe it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniresxx.data.own.given import Given
from uniresxx.data.own.left_out import LeftOut, Reason
from uniresxx.data.own.photos import Frame, Frames, Photos
from uniresxx.data.own.targets import PhotoTarget, Reader
from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import Sentence
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord


@dataclass
class OwnData:
    """The records by split, and the lines that describe them."""

    records: dict[str, list[ImageRecord]]
    photos: Photos
    frames: Frames
    left_out: LeftOut

    def has_target(self) -> bool:
        """Whether any expression means something that is there."""
        records = (record for found in self.records.values() for record in found)
        return any(item.rle is not None for record in records for item in record.expressions)

    def photo_line(self) -> str:
        """How many of the photos are there."""
        return line_of_photos(self.photos)


def line_of_photos(photos: Photos) -> str:
    """How many of the photos that are asked for are there, and where they were looked for."""
    found, missing = len(photos.found), len(photos.missing)
    line = f"photos: {found} of {found + missing} found"
    return (
        f"{line}, looked in {photos.folder} and below ({photos.index.count} photos there)"
        if missing
        else line
    )


def read_own(given: Given, folder: Path, name: str, licence: str, frame: Frame | None) -> OwnData:
    """The records of own data.

    Args:
        given: the annotation and sentences files.
        folder: of the photos.
        name: of the data set; expression ids start with it.
        licence: of photos and annotations.
        frame: in which annotations are read; None: as their width and height tell.

    Raises:
        InputError: no photo is there, or nothing is left that can be asked.
    """
    reader = Reader(given, folder, frame)
    targets = list(reader.targets())
    for problem in given.unreadable:
        reader.left_out.add(Reason.UNREADABLE, problem)
    for missing in reader.photos.missing:
        reader.left_out.add(Reason.MISSING_PHOTO, missing)
    line = line_of_photos(reader.photos)
    if reader.photos.missing and not reader.photos.found:
        raise InputError(f"{line}; put them there, or name their folder with --photos")
    if not targets:
        counts = ", ".join(f"{reason} {count}" for reason, count in reader.left_out.counts().items())
        raise InputError(f"nothing is left to ask ({line}; left out: {counts or 'nothing'})")
    records: dict[str, list[ImageRecord]] = {}
    for split in dict.fromkeys(item.split for item in targets):
        collector = Collector(f"{name}/{split}", folder, f"{name}/{split}", licence)
        numbers: Counter[Path] = Counter()
        for item in targets:
            if item.split == split:
                _collect(collector, item, folder, licence, numbers, reader.frames)
        records[split] = collector.records()
    return OwnData(records, reader.photos, reader.frames, reader.left_out)


def _collect(
    collector: Collector,
    item: PhotoTarget,
    folder: Path,
    licence: str,
    numbers: Counter[Path],
    frames: Frames,
) -> None:
    path, header = item.photo.path, item.photo.header
    assert header is not None, path
    below = Path(os.path.relpath(path, folder)).as_posix()
    photo = Photo(below, path, header.upright, licence)
    source: dict[str, Any] = {"annotations": list(item.native_ids)} if item.native_ids else {}
    if path in frames.photos:
        source["annotated_in"] = frames.photos[path]
    asked = []
    for text in item.texts:
        native = "_".join(Path(below).with_suffix("").parts)
        asked.append((f"{native}_{numbers[path]}", Sentence(text, text, None)))
        numbers[path] += 1
    collector.add(item.who, photo, Target(item.granularity, item.rle, source), asked)
