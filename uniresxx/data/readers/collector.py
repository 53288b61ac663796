"""From the expressions of a split to one ImageRecord per image, with a report of what was left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.readers.fields import Sentence, need, sentences, shown
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.errors import BadAnnotationError, InputError, NotThereError
from uniresxx.imaging import masks
from uniresxx.types import RLE, Expression, Granularity, ImageRecord, PhotoInside

logger = logging.getLogger("uniresxx.data")
COCO_MASKS = "masks CC BY 4.0 (COCO), expressions not stated"  # no release of the family names a licence


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of a data set.

    Args:
        image_id: its id in the records.
        place: its path, or its place in another file.
        size: (height, width).
        licence: of the photo alone.
        boxes: of all its objects, as in ImageRecord; empty where the data set does not have them.
    """

    image_id: str
    place: Path | PhotoInside
    size: tuple[int, int]
    licence: str = NOT_STATED
    boxes: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """What the sentences of a record point at."""

    granularity: Granularity
    rle: RLE | None
    source: Mapping[str, Any]


class Collector:
    """Gathers expressions into one ImageRecord per image and reports what was left out.

    Args:
        where: the file and split; errors and warnings start with it.
        root: the data folder; a record names files below it, so it does not depend on where the data lies.
        start: what every expression id starts with, `<data set>/<split>`.
        licence: of the annotations.
    """

    def __init__(self, where: str, root: Path, start: str, licence: str = COCO_MASKS) -> None:
        self.where, self.root, self.start, self.licence = where, root, start, licence
        self.images: dict[str, tuple[Photo, list[Expression]]] = {}
        self.left_out: list[str] = []
        self._seen: Counter[str] = Counter()

    def add(self, who: str, photo: Photo, target: Target, asked: Iterable[tuple[object, Sentence]]) -> None:
        """Add the sentences of a record, each with its id inside the split; blank ones are left out.

        Raises InputError where earlier records give the photo another size.
        """
        area = 0 if target.rle is None else masks.area(target.rle)
        for native, sentence in asked:
            if not sentence.text:
                self.leave_out(f"{who}: sentence {native} is blank")
                continue
            first, expressions = self.images.setdefault(photo.image_id, (photo, []))
            if first.size != photo.size:
                raise InputError(
                    f"{self.where}: {self.start}/{native} says image {photo.image_id} is {photo.size[0]} x "
                    f"{photo.size[1]} (height x width), earlier records say {first.size[0]} x {first.size[1]}"
                )
            source = {"raw": sentence.raw, **target.source}
            expression_id = self._unique(f"{self.start}/{native}")
            expressions.append(
                Expression(expression_id, sentence.text, target.granularity, target.rle, area, source=source)
            )

    def _unique(self, expression_id: str) -> str:
        """The id, with `#2`, `#3`, … where it comes again: predictions are stored by id."""
        self._seen[expression_id] += 1
        count = self._seen[expression_id]
        return expression_id if count == 1 else f"{expression_id}#{count}"

    def leave_out(self, what: str) -> None:
        """Note something that is right but cannot be asked or scored."""
        self.left_out.append(what)

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Leaves out what the block was about to add, where its annotation can be no target."""
        try:
            yield
        except BadAnnotationError as error:
            self.leave_out(str(error))

    def records(self) -> list[ImageRecord]:
        """The records; warns about what was left out. InputError where nothing is left."""
        if self.left_out:
            some = "; ".join(self.left_out[:3]) + ("; …" if len(self.left_out) > 3 else "")
            if not self.images:
                raise InputError(f"{self.where}: nothing left to read: {some}")
            logger.warning("%s: left out %d: %s", self.where, len(self.left_out), some)
        if not self.images:
            raise InputError(f"{self.where}: holds no expression")
        repeated = sum(count > 1 for count in self._seen.values())
        if repeated:
            logger.warning("%s: %d native ids are used more than once; got #2, #3, …", self.where, repeated)
        records = []
        for photo, expressions in self.images.values():
            inside = photo.place if isinstance(photo.place, PhotoInside) else None
            path = None if inside else str(photo.place)
            licence = f"photo {photo.licence}; annotations: {self.licence}"
            records.append(
                ImageRecord(
                    photo.image_id,
                    *photo.size,
                    tuple(expressions),
                    path=path,
                    inside=inside,
                    boxes=photo.boxes,
                    source={"licence": licence},
                )
            )
        if self.left_out:  # noted on the first record only, so that counts over records add up
            lines = tuple(line.replace(f"{self.root}/", "") for line in self.left_out)
            records[0] = replace(records[0], source={**records[0].source, "left_out": lines})
        return records


def with_sent_ids(record: Mapping[str, Any], who: str) -> Iterator[tuple[str, Sentence]]:
    """The sentences of a RefCOCO-type record by `sent_id`; InputError where one has none."""
    for sentence in sentences(record, "sent_id", who):
        if sentence.native_id is None:
            need({}, "sent_id", f"{who}: a sentence")
        yield str(sentence.native_id), sentence


def records_of_split(
    records: Sequence[Mapping[str, Any]], split: str, path: Path
) -> list[tuple[str, Mapping[str, Any]]]:
    """(name for errors, record) of the records of a split; InputError listing the splits if it has none."""
    named = [(f"{path}: record {index}{_ref_name(record)}", record) for index, record in enumerate(records)]
    chosen = [(who, record) for who, record in named if need(record, "split", who) == split]
    if not chosen:
        known = sorted({str(record["split"])[:30] for record in records if isinstance(record["split"], str)})
        raise NotThereError(f"{path}: has no split {split!r}; it has {', '.join(known) or 'no records'}")
    return chosen


def _ref_name(record: Mapping[str, Any]) -> str:
    return f" (ref_id {shown(record['ref_id'])})" if "ref_id" in record else ""
